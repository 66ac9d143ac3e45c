//go:build darwin || dragonfly || freebsd || linux || netbsd || openbsd

package bulkclient

import (
	"os"
	"syscall"
)

// lockFile locks the file for this process. The lock ends with the process.
func lockFile(file *os.File) error {
	return syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
}
