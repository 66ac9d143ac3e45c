//go:build long

package e2e

import (
	"bytes"
	"cmp"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sluice-fhir/sluice/pkg/objects/objectstest"
	"github.com/sluice-fhir/sluice/pkg/testenv"
	"github.com/sluice-fhir/sluice/services/e2e/check"
	"github.com/sluice-fhir/sluice/services/e2e/expect"
)

// workerFolders are the folders, of this repository, from which the worker is built.
func workerFolders(t *testing.T) []string {
	t.Helper()
	list := exec.CommandContext(t.Context(), "go", "list", "-deps", "-f", "{{.ImportPath}} {{.Dir}}", "../worker")
	out, err := list.Output()
	check.Must(t, err)
	var folders []string
	for line := range strings.Lines(string(out)) {
		path, dir, _ := strings.Cut(strings.TrimSpace(line), " ")
		if strings.HasPrefix(path, "github.com/sluice-fhir/sluice/") {
			folders = append(folders, dir)
		}
	}
	return folders
}

// git runs git in the repository and returns its output.
func git(t *testing.T, root string, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "git", append([]string{"-C", root}, args...)...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("git %s: %v: %s\nthis test needs the history of the workers' last change: git fetch --unshallow",
			strings.Join(args, " "), err, stderr.String())
	}
	return strings.TrimSpace(string(out))
}

// previousVariable names the commit that an upgrade starts from. The default is the one before the workers' last change.
const previousVariable = "SLUICE_TEST_PREVIOUS"

// previousWorker builds the worker of that commit, and returns its path and the commit.
func previousWorker(t *testing.T) (path, commit string) {
	t.Helper()
	root := git(t, ".", "rev-parse", "--show-toplevel")
	change := git(t, root, slices.Concat([]string{"log", "-1", "--format=%H", "HEAD", "--", ":(exclude,glob)**/*_test.go"},
		workerFolders(t))...)
	if change == "" {
		t.Fatal("the history does not contain the workers' last change")
	}
	commit = git(t, root, "rev-parse", "--verify", cmp.Or(os.Getenv(previousVariable), change+"^"))
	dir := t.TempDir()
	tree := filepath.Join(dir, "tree.tar")
	git(t, root, "archive", "--format=tar", "--output="+tree, commit)
	sources := filepath.Join(dir, "sources")
	for _, step := range [][]string{
		{"mkdir", sources}, {"tar", "-xf", tree, "-C", sources},
		{"go", "-C", sources, "build", "-o", filepath.Join(dir, "worker"), "./services/worker"},
	} {
		if said, err := exec.CommandContext(t.Context(), step[0], step[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", strings.Join(step, " "), err, said)
		}
	}
	return filepath.Join(dir, "worker"), commit
}

// TestAJobSharedWithWorkersOfThePreviousCommit is the middle of a rolling upgrade: workers of two versions run units of one
// job, and their joint output equals that of either version alone.
func TestAJobSharedWithWorkersOfThePreviousCommit(t *testing.T) {
	began := time.Now()
	old, commit := previousWorker(t)
	t.Logf("built the worker of %s in %.1f s", commit, time.Since(began).Seconds())

	data := generated(t, 60)
	proxy := objectstest.NewProxy(t, testenv.ObjectStore(t).Endpoint)
	s := deploy(t, setup{
		data: data, endpoint: proxy.Endpoint(),
		worker: []string{
			"SLUICE_WORKER_CONCURRENCY=1", "SLUICE_WORKER_EXPRESS=1", "SLUICE_UNIT_BYTES=1000000", "SLUICE_FILE_BYTES=1000000",
		},
		scheduler: []string{"SLUICE_SWEEP_EVERY=1s", "SLUICE_SWEEP_GRACE=0s"},
	})
	alone := []*service{s.startWorker()}
	alone[0].ready()
	undisturbed := s.lines(s.wait(s.kickoff("all", ""), 2*time.Minute).Output)
	alone[0].stop()

	alone = []*service{s.startProgram(old, s.env...)}
	alone[0].ready()
	expect.SameLines(t, "workers of the previous commit alone", s.lines(s.wait(s.kickoff("all", ""), 2*time.Minute).Output),
		undisturbed)
	alone[0].stop()

	// The store is slow, so that no worker takes all units.
	proxy.OnReply(func(reply *http.Response) error {
		if reply.Request.Method == http.MethodPut {
			time.Sleep(50 * time.Millisecond)
		}
		return nil
	})
	before := []*service{s.startProgram(old, s.env...), s.startProgram(old, s.env...)}
	after := []*service{s.startWorker(), s.startWorker()}
	both := append(before[:2:2], after...)
	for _, w := range both {
		w.ready()
	}
	status := s.kickoff("all", "")
	m := s.wait(status, 2*time.Minute)
	expect.SameLines(t, "workers of both commits", s.lines(m.Output), undisturbed)
	if len(m.Error) != 0 {
		t.Errorf("errors: %v", m.Error)
	}
	s.onlyManifestIsStored(status, m)
	for _, w := range both {
		w.stop()
	}
	of, ofOld, ofNew := executionsOf(both), executionsOf(before), executionsOf(after)
	t.Logf("%d units: %d by the previous commit's workers, %d by this one's", of.units(), ofOld.units(), ofNew.units())
	if ofOld.outcomes["done"] == 0 || ofNew.outcomes["done"] == 0 {
		t.Error("one version ran no unit: the job was not shared")
	}
	of.exact(t)
}
