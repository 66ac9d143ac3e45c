package ndjson

import (
	"io/fs"
	"syscall"
	"time"
)

// changed returns when the file was last changed: the later one of its two times. A copy that keeps the time of the
// content, such as that of rsync, sets only the time of the inode.
func changed(info fs.FileInfo) time.Time {
	at := info.ModTime()
	if stat, ok := info.Sys().(*syscall.Stat_t); ok {
		if inode := time.Unix(stat.Ctim.Unix()); inode.After(at) {
			at = inode
		}
	}
	return at
}
