package progress

import (
	"bytes"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vbauerster/mpb/v8"
	"go.uber.org/goleak"

	"github.com/sluice-fhir/sluice/pkg/bulkclient"
	"github.com/sluice-fhir/sluice/pkg/testenv"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var (
	patients = bulkclient.File{List: bulkclient.ListOutput, Type: "Patient", Name: "a", Count: 10}
	reports  = bulkclient.File{List: bulkclient.ListError, Type: "OperationOutcome", Name: "b", Count: -1}
)

func TestLines(t *testing.T) {
	now := time.Unix(0, 0)
	var out bytes.Buffer
	lines := NewLines(&out, func() time.Time { return now })
	lines.Started(bulkclient.Job{StatusURL: "https://a.org/fhir/jobs/7"})
	lines.Polled(bulkclient.Status{State: "scheduled", Percent: -1})
	lines.Polled(bulkclient.Status{State: "scheduled", Percent: -1})
	lines.Polled(bulkclient.Status{State: "started", Percent: 7})
	lines.Polled(bulkclient.Status{State: "started", Percent: 8})
	now = now.Add(between)
	lines.Polled(bulkclient.Status{State: "started", Percent: 9})
	lines.Waiting(errors.New("no answer"), time.Second)
	lines.Planned([]bulkclient.File{patients, reports})
	for range 5 {
		lines.Advanced(patients, 1, 1000)
	}
	now = now.Add(between)
	lines.Advanced(patients, 5, 5000)
	lines.Finished(patients)
	lines.Advanced(reports, 1, 100)
	lines.Finished(reports)
	want := `export 7: https://a.org/fhir/jobs/7
server: scheduled
server: started, 7%
server: started, 9%
no answer; next attempt in 1s
downloading 2 files
downloaded 0 of 2 files: 10 resources, 10.0 KB
downloaded 2 of 2 files: 11 resources, 10.1 KB
`
	if out.String() != want {
		t.Errorf("wrote:\n%swant:\n%s", out.String(), want)
	}
}

// TestBarsEnd: Close returns after concurrent updates, whether or not the export finished.
func TestBarsEnd(t *testing.T) {
	for name, finish := range map[string]bool{"finished": true, "interrupted": false} {
		t.Run(name, func(t *testing.T) {
			out := &testenv.Buffer{}
			bars := NewBars(out, mpb.WithAutoRefresh(), mpb.WithRefreshRate(time.Millisecond))
			for percent := range 200 { // long enough to be drawn in between
				bars.Polled(bulkclient.Status{State: "started", Percent: percent})
			}
			bars.Waiting(errors.New("no answer"), time.Second)
			bars.Planned([]bulkclient.File{patients, reports})
			var group sync.WaitGroup
			for range 4 {
				group.Go(func() {
					for range 100 {
						bars.Advanced(patients, 1, 10)
						bars.Advanced(patients, -1, -10)
						bars.Advanced(reports, 1, 10)
					}
				})
			}
			group.Wait()
			if finish {
				bars.Advanced(patients, 10, 100)
				bars.Finished(patients)
				bars.Finished(reports)
			}
			bars.Close()
			text := out.String()
			if want := "no answer; next attempt in 1s\n"; !strings.Contains(text, want) {
				t.Errorf("%q is not in %q", want, text)
			}
			for _, want := range []string{
				"Patient: 1 file, 10 resources, 100 B\n", "error OperationOutcome: 1 file, 400 resources, 4.0 KB\n",
			} {
				if finish != strings.Contains(text, want) {
					t.Errorf("%q: %t in %q", want, !finish, text)
				}
			}
		})
	}
}

// TestBarsFitTheScreen: with many types and files under way, a drawing has the rows of a few files and the total.
func TestBarsFitTheScreen(t *testing.T) {
	out := &testenv.Buffer{}
	bars := NewBars(out, mpb.WithAutoRefresh(), mpb.WithRefreshRate(time.Millisecond))
	var files []bulkclient.File
	for i := range 40 {
		files = append(files, bulkclient.File{
			List: bulkclient.ListOutput, Type: fmt.Sprint("Type", i), Name: fmt.Sprint("Type", i, ".ndjson"), Count: 100,
		})
	}
	bars.Planned(files)
	for range 50 {
		for _, file := range files {
			bars.Advanced(file, 1, 1000)
		}
	}
	for !strings.Contains(out.String(), "Type7.ndjson") { // until the rows are drawn
		bars.Advanced(files[0], 0, 1)
	}
	for _, file := range files[:20] {
		bars.Finished(file)
	}
	for _, file := range files[20:] {
		bars.Advanced(file, 1, 1000)
	}
	bars.Close()
	most := 0
	for _, up := range regexp.MustCompile(`\x1b\[(\d+)A`).FindAllStringSubmatch(out.String(), -1) {
		rows, err := strconv.Atoi(up[1])
		if err != nil {
			t.Fatal(err)
		}
		most = max(most, rows)
	}
	if most < 2 || most > 9 {
		t.Errorf("drew up to %d rows", most)
	}
}

func TestMeter(t *testing.T) {
	now := time.Unix(0, 0)
	m := &meter{}
	for _, step := range []struct {
		after              time.Duration
		bytes, done, total int64
		want               string
	}{
		{0, 0, 0, 100, "0 B"},
		{10 * time.Second, 20_000_000, 10, 100, "20.0 MB  2.0 MB/s  1m30s left"},
		{10 * time.Second, 120_000_000, 60, 100, "120.0 MB  10.0 MB/s  8s left"},
		{10 * time.Second, 120_000_000, 60, 100, "120.0 MB  0 B/s"},
		{time.Second, 0, 0, 100, "0 B"},
	} {
		now = now.Add(step.after)
		if got := m.text(now, step.bytes, step.done, step.total); got != step.want {
			t.Errorf("after %v more: %q, want %q", step.after, got, step.want)
		}
	}
}

func TestBarsWithoutFiles(t *testing.T) {
	NewBars(&testenv.Buffer{}).Close()
	bars := NewBars(&testenv.Buffer{})
	bars.Planned(nil)
	bars.Close()
}

func TestCountInLines(t *testing.T) {
	now := time.Unix(0, 0)
	var out bytes.Buffer
	count := NewCount(&out, "patients", 10, func() time.Time { return now })
	count.Set(1)
	now = now.Add(between)
	count.Set(5)
	count.Set(10)
	count.Close()
	if want := "5 of 10 patients\n"; out.String() != want {
		t.Errorf("wrote %q, want %q", out.String(), want)
	}
	if Terminal(&out) {
		t.Error("a buffer counts as a terminal")
	}
}
