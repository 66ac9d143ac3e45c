package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// skew is how wrong a clock is: less than the 15 minutes after which an object store refuses a request.
const skew = 10 * time.Minute

const ahead, behind = "ahead", "behind"

func (s *system) skewedBin(way string) string { return filepath.Join(s.dir, "skewed", way) }

// buildSkewed builds the services with a changed time.Now of the standard library, which is their only clock. The system
// has one clock, which a test cannot change, and programs without libc cannot be given another one from outside.
func (s *system) buildSkewed(ctx context.Context) error {
	root, err := exec.CommandContext(ctx, "go", "env", "GOROOT").Output()
	if err != nil {
		return fmt.Errorf("find Go: %w", err)
	}
	original := filepath.Join(strings.TrimSpace(string(root)), "src", "time", "time.go")
	text, err := os.ReadFile(original)
	if err != nil {
		return err
	}
	const reads = "sec, nsec, mono := runtimeNow()\n"
	if strings.Count(string(text), reads) != 1 {
		return errors.New("time.Now of this Go is not as expected: it cannot be changed")
	}
	// The linker sets the way, so that everything is compiled only once.
	wrong := fmt.Sprintf("if skewed == %q { sec += %d }; if skewed == %q { sec -= %d }\n",
		ahead, int(skew.Seconds()), behind, int(skew.Seconds()))
	changed := strings.Replace(string(text), reads, reads+wrong, 1)
	file, overlay := filepath.Join(s.dir, "time.go"), filepath.Join(s.dir, "overlay.json")
	if err := os.WriteFile(file, []byte(changed+"\nvar skewed string\n"), 0o600); err != nil {
		return err
	}
	list, err := json.Marshal(map[string]any{"Replace": map[string]string{original: file}})
	if err != nil {
		return err
	}
	if err := os.WriteFile(overlay, list, 0o600); err != nil {
		return err
	}
	for _, way := range []string{ahead, behind} {
		build := exec.CommandContext(ctx, "go", "build", "-overlay", overlay, "-ldflags", "-X time.skewed="+way,
			"-o", s.skewedBin(way)+"/", "./services/api", "./services/auth", "./services/scheduler", "./services/worker")
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if said, err := build.CombinedOutput(); err != nil {
			return fmt.Errorf("build the services with a wrong clock: %w: %s", err, said)
		}
	}
	return nil
}
