// Package bulkclient is a client of a FHIR Bulk Data export: it kicks an export off, polls it, and downloads its files.
//
// It promises that a file stands under its final name only when everything that can be known about it was checked:
// the digest of the stored representation (Repr-Digest, RFC 9530), the gzip checksum, the number of lines and the
// type of every line. What was downloaded survives a lost connection and a killed process: Export continues in the
// same folder with ranges that are conditional on the file's ETag. Memory is flat, whatever the size of a file.
//
// It refuses to send its token anywhere but to the origin of the base URL, and to write anywhere but directly inside
// its folder, whatever names the server chooses. It writes nothing to a terminal: an Observer hears how things go.
package bulkclient
