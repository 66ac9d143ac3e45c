// Package loader reads NDJSON files for a load: it finds them, reads their lines on all cores, and passes valid
// resources on by type. An invalid line is reported with its file and number, never its content, and left out.
package loader
