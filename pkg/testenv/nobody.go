package testenv

import (
	"os"
	"os/exec"
	"syscall"
	"testing"
)

// AsNobody runs the calling test again in a process of an unprivileged user if this one is root, whom file permissions do
// not stop. It returns true in the process that has to do the test.
func AsNobody(t *testing.T) bool {
	t.Helper()
	if os.Geteuid() != 0 {
		return true
	}
	const nobody = 65534
	child := exec.CommandContext(t.Context(), "/proc/self/exe", "-test.run", "^"+t.Name()+"$")
	child.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	if output, err := child.CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, output)
	}
	return false
}
