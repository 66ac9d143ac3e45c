// Package loader reads NDJSON files for a load: it finds them, takes them apart into lines on every core, and hands what
// it understands on by type. A line that it does not understand is told with its file and number, never its content,
// and the rest goes in.
package loader
