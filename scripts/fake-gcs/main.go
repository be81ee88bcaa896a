// Serves fake-gcs-server's storage on a port, to clients that speak Google's XML API as well as its JSON one.
//
// fake-gcs-server answers the XML API's GET, HEAD, DELETE and lists, and of its PUTs only those with a signed URL. A
// plain PUT is what the JSON API calls a media upload, and is passed on as one here.
package main

import (
	"encoding/json"
	"flag"
	"log"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"strings"

	"github.com/fsouza/fake-gcs-server/fakestorage"
)

func main() {
	listen := flag.String("listen", "", "HOST:PORT")
	root := flag.String("root", "", "where buckets are kept, each a directory")
	flag.Parse()
	host, _, _ := strings.Cut(*listen, ":")
	storage, err := fakestorage.NewServerWithOptions(fakestorage.Options{
		NoListener: true, StorageRoot: *root, PublicHost: *listen, Scheme: "http", Host: host, Writer: os.Stderr,
	})
	if err != nil {
		log.Fatal(err)
	}
	log.Fatal(http.ListenAndServe(*listen, withPuts(storage.HTTPHandler())))
}

func withPuts(api http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		bucket, object, found := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
		if r.Method != http.MethodPut || r.URL.RawQuery != "" || !found {
			api.ServeHTTP(w, r)
			return
		}
		query := url.Values{"uploadType": {"media"}, "name": {object}}
		if generation := r.Header.Get("x-goog-if-generation-match"); generation != "" {
			query.Set("ifGenerationMatch", generation)
		}
		upload := httptest.NewRequest(http.MethodPost, "/upload/storage/v1/b/"+bucket+"/o?"+query.Encode(), r.Body)
		upload.Header = r.Header
		upload.Host = r.Host
		answer := httptest.NewRecorder()
		api.ServeHTTP(answer, upload)
		var made struct {
			Etag       string `json:"etag"`
			Generation string `json:"generation"`
		}
		if answer.Code == http.StatusOK && json.Unmarshal(answer.Body.Bytes(), &made) == nil {
			w.Header().Set("ETag", `"`+strings.Trim(made.Etag, `"`)+`"`)
			w.Header().Set("x-goog-generation", made.Generation)
		}
		w.WriteHeader(answer.Code)
	})
}
