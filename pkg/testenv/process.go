package testenv

import (
	"syscall"
	"testing"
)

// FreePort returns a port of 127.0.0.1 that nobody listens on, below the range that the system hands out by itself.
func FreePort(t testing.TB) int { return freePort(t) }

// PostgresAccount says as whom PostgreSQL's programs run when root, as which they refuse to, runs the tests.
func PostgresAccount(t testing.TB) *syscall.SysProcAttr { return account(t) }
