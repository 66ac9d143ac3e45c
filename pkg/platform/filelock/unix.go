//go:build darwin || dragonfly || freebsd || linux || netbsd || openbsd

// Package filelock locks files, so that two processes do not write them.
package filelock

import (
	"os"
	"syscall"
)

// Lock locks the file for this process, or fails when another one has locked it. The lock ends with the process.
func Lock(file *os.File) error {
	return syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
}
