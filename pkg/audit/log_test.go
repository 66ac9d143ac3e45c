package audit

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/sluice-fhir/sluice/pkg/export"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestOpenChecksConfig(t *testing.T) {
	dir := t.TempDir()
	for name, tc := range map[string]struct {
		change  func(*Config)
		wantErr string
	}{
		"no path":            {func(c *Config) { c.Path = "" }, "no path"},
		"no process":         {func(c *Config) { c.Process = "" }, "no process"},
		"a short key":        {func(c *Config) { c.Key = c.Key[:31] }, "31 bytes, want at least 32"},
		"stdout synced":      {func(c *Config) { c.Path, c.Sync = "stdout", true }, "cannot be synced"},
		"a folder":           {func(c *Config) { c.Path = dir }, "not a regular file"},
		"a device":           {func(c *Config) { c.Path = "/dev/null" }, "not a regular file"},
		"a folder not there": {func(c *Config) { c.Path = dir + "/none/audit" }, "no such file"},
	} {
		cfg := config(logFile(t))
		tc.change(&cfg)
		l, err := Open(cfg)
		if err == nil || !strings.Contains(err.Error(), tc.wantErr) {
			t.Errorf("%s: %v, want %q", name, err, tc.wantErr)
		}
		if l != nil {
			mustClose(t, l)
		}
	}
}

func TestRecord(t *testing.T) {
	path := logFile(t)
	l := mustOpen(t, config(path), openHandle)
	mustRecord(t, l, Event{Action: KickOff, Outcome: Success}, download())
	unavailable(t, l.Record(Event{Action: Denied, Outcome: Refused, Reason: strings.Repeat("x", LineLimit)}))
	unavailable(t, l.Record(Event{Action: "export", Outcome: Success}))
	unavailable(t, l.Record(Event{Action: KickOff, Outcome: "good"}))
	unavailable(t, l.Record(Event{Action: Status, Outcome: Success, Job: "../../etc"}))
	unavailable(t, l.Record(Event{Action: File, Outcome: Success, Bytes: -1}))
	mustRecord(t, l, Event{Action: Cancel, Outcome: Failed})
	mustClose(t, l)
	mustClose(t, l)
	unavailable(t, l.Record(download()))

	actions, report := verified(t, path)
	want(t, actions, "start kick-off file repair cancel stop")
	if text := string(content(t, path)); strings.Contains(text, "etc") || !strings.Contains(text, `"5 events before this one`) {
		t.Errorf("the log contains %s", text)
	}
	chain := report.Chains[0]
	if len(report.Chains) != 1 || chain.First != 0 || chain.Last != 5 || chain.Process != "api" || chain.Site != "host-1" ||
		!chain.From.Equal(noon().Truncate(time.Millisecond)) || len(chain.Head) != 64 {
		t.Errorf("report %+v", report)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, error %v", info.Mode(), err)
	}
}

// No field can break the line or forge the chain extension.
func TestFieldsAreEscaped(t *testing.T) {
	path := logFile(t)
	l := mustOpen(t, config(path), openHandle)
	forged, _ := newHasher(nil).seal([]byte(`{"resourceType":"AuditEvent"}`), newChain())
	for _, text := range []string{"a\nb", "a\r\n{}", `"}]}]}`, string(forged), "\x00\xff\u2028", `\`, "<>&"} {
		mustRecord(t, l, Event{
			Action: Admin, Outcome: Success, Target: text, Reason: text, File: text, RequestID: text, Types: []string{text},
			Agent: export.Owner{Issuer: text, Subject: text},
		})
	}
	mustClose(t, l)
	actions, _ := verified(t, path)
	want(t, actions, "start admin admin admin admin admin admin admin stop")
}

func TestObserve(t *testing.T) {
	var counted []string
	cfg := config(logFile(t))
	cfg.Observe = func(e Event, err error) {
		counted = append(counted, fmt.Sprint(e.Action, " ", e.Outcome, " ", errors.Is(err, export.ErrUnavailable)))
	}
	l := mustOpen(t, cfg, openHandle)
	mustRecord(t, l, Event{Action: Denied, Outcome: Refused})
	unavailable(t, l.Record(Event{Action: Denied}))
	mustClose(t, l)
	if got := strings.Join(counted, ", "); got != "denied refused false, denied  true" {
		t.Errorf("observed %s", got)
	}
}

func TestManyAtOnce(t *testing.T) {
	for _, durable := range []bool{false, true} {
		path, disk := logFile(t), &faulty{}
		cfg := config(path)
		cfg.Sync = durable
		l := mustOpen(t, cfg, withFaults(disk))
		const writers, each = 16, 20
		var all sync.WaitGroup
		for range writers {
			all.Go(func() {
				for range each {
					if err := l.Record(download()); err != nil {
						t.Error(err)
					}
				}
			})
		}
		all.Wait()
		mustClose(t, l)
		if actions, _ := verified(t, path); len(actions) != writers*each+2 {
			t.Errorf("%d lines, want %d", len(actions), writers*each+2)
		}
		if disk.writes != writers*each+2 {
			t.Errorf("%d writes: want one for each line", disk.writes)
		}
		if durable != (disk.syncs > 0) {
			t.Errorf("durable %v: %d fsyncs", durable, disk.syncs)
		}
	}
}

// Events that arrive during an fsync share the next one, and Record returns after it.
func TestGroupCommit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path, disk := logFile(t), &faulty{}
		cfg := config(path)
		cfg.Sync = true
		l := mustOpen(t, cfg, withFaults(disk))
		busy := make(chan struct{})
		disk.set(func() { disk.beforeSync = func() { <-busy } })
		var answered atomic.Int64
		var all sync.WaitGroup
		for range 50 {
			all.Go(func() {
				if err := l.Record(download()); err != nil {
					t.Error(err)
				}
				answered.Add(1)
			})
		}
		synctest.Wait()
		if answered.Load() != 0 {
			t.Errorf("%d calls returned before the fsync", answered.Load())
		}
		close(busy)
		all.Wait()
		if disk.syncs > 1+2 { // for Start, for the first event, and for all others
			t.Errorf("%d fsyncs for 50 events", disk.syncs)
		}
		mustClose(t, l)
		verified(t, path)
	})
}

// During a disk fault events are refused, and the log gets neither a torn line nor a line that may not be on disk. A line
// with the number of refused events precedes the next event.
func TestFaults(t *testing.T) {
	short := func(bytes int) func(*faulty) { return func(d *faulty) { d.short = bytes } }
	failedSync := func(d *faulty) { d.syncError = errDisk }
	for name, faults := range map[string][]func(*faulty){ // one for each refused event
		"nothing written":    {short(0)},
		"a byte written":     {short(1)},
		"100 bytes written":  {short(100)},
		"fsync":              {failedSync},
		"fsync of a notice":  {short(5), failedSync},
		"write and truncate": {func(d *faulty) { d.short, d.noCut = 10, true }, func(*faulty) {}, func(*faulty) {}},
	} {
		t.Run(name, func(t *testing.T) {
			path, disk := logFile(t), &faulty{}
			cfg := config(path)
			cfg.Sync = true
			l := mustOpen(t, cfg, withFaults(disk))
			mustRecord(t, l, download())
			before := content(t, path)
			for _, fault := range faults {
				disk.set(func() { fault(disk) })
				unavailable(t, l.Record(Event{Action: Purge, Outcome: Success}))
				if !disk.noCut && !bytes.Equal(content(t, path), before) {
					t.Error("the refused line is in the file")
				}
			}
			if disk.noCut && disk.writes != 3 {
				t.Errorf("%d writes, want 3: nothing follows a torn line", disk.writes)
			}
			disk.set(func() { disk.noCut = false })
			mustRecord(t, l, Event{Action: Status, Outcome: Success})
			mustClose(t, l)
			actions, _ := verified(t, path)
			want(t, actions, "start file repair status stop")
			if notice := fmt.Sprintf(`"outcomeDesc":"%d events before this one`, len(faults)); !strings.Contains(string(content(t, path)), notice) {
				t.Errorf("%s is not in the log", notice)
			}
		})
	}
}

// Record and Close time out on a stuck disk.
func TestStuckDisk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path, disk := logFile(t), &faulty{}
		cfg := config(path)
		cfg.Sync = true
		l := mustOpen(t, cfg, withFaults(disk))
		stuck := make(chan struct{})
		disk.set(func() { disk.beforeSync = func() { <-stuck } })
		var all sync.WaitGroup
		for range 3 { // one with the writer, two waiting for it
			all.Go(func() { unavailable(t, l.Record(download())) })
			synctest.Wait()
		}
		all.Wait()
		if err := l.Close(); err == nil {
			t.Error("closed although the disk is stuck")
		}
		close(stuck)
		mustClose(t, l)
		actions, _ := verified(t, path)
		want(t, actions, "start file repair stop")
		if !bytes.Contains(content(t, path), []byte(`"outcomeDesc":"3 events before this one`)) {
			t.Error("the log does not contain the number of refused events")
		}
	})
}

func TestAgents(t *testing.T) {
	path := logFile(t)
	l := mustOpen(t, config(path), openHandle)
	mustRecord(t, l,
		Event{Action: Denied, Outcome: Refused, Address: netip.MustParseAddr("::ffff:192.0.2.9"), HTTPStatus: 401},
		Event{Action: Purge, Outcome: Success, Job: someJob})
	mustClose(t, l)
	verified(t, path)
	lines := linesOf(content(t, path))
	for i, text := range map[int]string{
		1: `"agent":[{"type":{"coding":[{"system":"urn:sluice:audit:agent","code":"unauthenticated"}],` +
			`"text":"unauthenticated client"},"requestor":true,"network":{"address":"192.0.2.9","type":"2"}}]`,
		2: `"agent":[{"type":{"coding":[{"system":"http://dicom.nema.org/resources/ontology/DCM","code":"110150",` +
			`"display":"Application"}]},"who":{"display":"api"},"requestor":true}]`,
	} {
		if !bytes.Contains(lines[i], []byte(text)) {
			t.Errorf("line %d is %s, want %s", i, lines[i], text)
		}
	}
}
