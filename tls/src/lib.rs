//! Certificates that are reloaded when their files change, for servers and clients.
