// Package clients is the client registry of the token service: a YAML file, and clients that the command line stored in
// Redis. For an id in both, the file takes precedence.
//
// The file is read again when it changes; replace it by renaming. While it is missing or malformed, every lookup fails with
// export.ErrUnavailable. This includes clients in Redis, because the file may contain the same id. Errors never quote the
// file.
package clients
