//go:build darwin || dragonfly || freebsd || linux || netbsd || openbsd

// Package filelock locks files, so that two processes do not write them.
package filelock

import (
	"os"
	"syscall"
)

// Lock locks the file for this process, or fails if another process has locked it. The lock is released when the process
// exits.
func Lock(file *os.File) error {
	return syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
}
