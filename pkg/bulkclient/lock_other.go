//go:build !(darwin || dragonfly || freebsd || linux || netbsd || openbsd)

package bulkclient

import "os"

// lockFile does nothing: on this platform two processes in one folder are not detected.
func lockFile(*os.File) error { return nil }
