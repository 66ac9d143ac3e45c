//go:build !linux

package ndjson

import (
	"io/fs"
	"time"
)

// changed returns when the content of the file was last changed.
func changed(info fs.FileInfo) time.Time { return info.ModTime() }
