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
	for way, by := range map[string]time.Duration{"ahead": skew, "behind": -skew} {
		dir := s.skewedBin(way)
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
		changed := strings.Replace(string(text), reads, fmt.Sprintf("%s\tsec += %d\n", reads, int(by.Seconds())), 1)
		file := filepath.Join(dir, "time.go")
		if err := os.WriteFile(file, []byte(changed), 0o600); err != nil {
			return err
		}
		overlay, err := json.Marshal(map[string]any{"Replace": map[string]string{original: file}})
		if err != nil {
			return err
		}
		list := filepath.Join(dir, "overlay.json")
		if err := os.WriteFile(list, overlay, 0o600); err != nil {
			return err
		}
		build := exec.CommandContext(ctx, "go", "build", "-overlay", list, "-o", dir+"/",
			"./services/api", "./services/auth", "./services/scheduler", "./services/worker")
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if said, err := build.CombinedOutput(); err != nil {
			return fmt.Errorf("build the services with a wrong clock: %w: %s", err, said)
		}
	}
	return nil
}
