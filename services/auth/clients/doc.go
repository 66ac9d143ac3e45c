// Package clients is the register of the token service: clients in a YAML file, and clients in Redis that the command
// line has put there. Where both know an id, the file counts.
//
// The file is read again when it changes; replace it by renaming. While it is gone or cannot be read as it is, every
// question is answered with an error that wraps export.ErrUnavailable, also one about a client in Redis: nobody could
// say whether the file, which counts more, knows it. Errors never quote the file.
package clients
