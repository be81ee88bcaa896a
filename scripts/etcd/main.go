// A current etcd server for the tests: what its authors build from their own tree, at the version that go.mod
// pins. `go install` refuses that tree, because its module replaces others by their neighbours.
package main

import (
	"os"

	"go.etcd.io/etcd/server/v3/etcdmain"
)

func main() {
	etcdmain.Main(os.Args)
}
