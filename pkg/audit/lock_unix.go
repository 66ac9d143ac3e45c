//go:build darwin || dragonfly || freebsd || linux || netbsd || openbsd

package audit

import (
	"os"
	"syscall"
)

// lockFile takes the file for this process. The lock ends with the process, however it ends.
func lockFile(file *os.File) error {
	return syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
}

// duplicate returns a descriptor of its own for what the file writes to. Go ends a program that writes to a closed
// pipe on descriptor 1 or 2; on any other the write returns an error, which is wanted here.
func duplicate(file *os.File) (*os.File, error) {
	syscall.ForkLock.RLock() // until the descriptor is kept from programs that are started meanwhile
	defer syscall.ForkLock.RUnlock()
	descriptor, err := syscall.Dup(int(file.Fd()))
	if err != nil {
		return nil, os.NewSyscallError("dup", err)
	}
	syscall.CloseOnExec(descriptor)
	return os.NewFile(uintptr(descriptor), file.Name()), nil
}
