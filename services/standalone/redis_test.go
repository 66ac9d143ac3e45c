package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// fill writes one key of each type, with values that are not text.
func fill(t *testing.T, server *miniredis.Miniredis) {
	t.Helper()
	must(t, server.Set("string", "\x00\xff\r\n"))
	must(t, server.Set("empty", ""))
	server.HSet("hash", "a", "1", "\x80", "")
	_, err := server.Push("list", "b", "a", "b")
	must(t, err)
	_, err = server.SAdd("set", "x", "y")
	must(t, err)
	for member, score := range map[string]float64{"ms": 1795641911123, "half": 0.5, "less": -1} {
		_, err = server.ZAdd("zset", score, member)
		must(t, err)
	}
	must(t, server.Set("leased", "x"))
	server.SetTTL("leased", time.Hour)
	must(t, server.Set("asynq:servers:{host:1:x}", "of this process"))
}

func TestTheEmbeddedRedisOutlivesItsProcess(t *testing.T) {
	file := filepath.Join(t.TempDir(), "jobs.snapshot")
	before, err := startRedis(file)
	must(t, err)
	fill(t, before.server)
	must(t, before.save(t.Context()))
	want := before.server.Dump()
	before.client.Close()
	before.server.Close() // as killed

	after, err := startRedis(file)
	must(t, err)
	if after.server.Exists("asynq:servers:{host:1:x}") {
		t.Error("the processes of an earlier run are restored")
	}
	must(t, after.server.Set("asynq:servers:{host:1:x}", "of this process"))
	if got := after.server.Dump(); got != want {
		t.Errorf("restored:\n%s\nwant:\n%s", got, want)
	}
	if left := after.server.TTL("leased"); left < 50*time.Minute || left > time.Hour {
		t.Errorf("the key expires in %s", left)
	}
	must(t, after.client.FlushAll(context.Background()).Err())
	must(t, after.close(t.Context())) // saves
	empty, err := startRedis(file)
	must(t, err)
	if keys := empty.server.Keys(); len(keys) > 0 {
		t.Errorf("deleted keys are restored: %v", keys)
	}
	must(t, empty.close(t.Context()))
}

func TestExpiredKeysAreNotRestored(t *testing.T) {
	file := filepath.Join(t.TempDir(), "jobs.snapshot")
	r, err := startRedis(file)
	must(t, err)
	fill(t, r.server)
	must(t, r.close(t.Context()))
	later := &embeddedRedis{server: miniredis.NewMiniRedis(), file: file}
	must(t, later.restore(time.Now().Add(2*time.Hour)))
	if later.server.Exists("leased") || !later.server.Exists("string") {
		t.Errorf("keys %v", later.server.Keys())
	}
}

func TestASnapshotIsWrittenOnlyWhenAValueChanged(t *testing.T) {
	file := filepath.Join(t.TempDir(), "jobs.snapshot")
	r, err := startRedis(file)
	must(t, err)
	fill(t, r.server)
	must(t, r.save(t.Context()))
	must(t, os.Remove(file))
	r.server.FastForward(time.Minute)
	must(t, r.save(t.Context()))
	if _, err := os.Stat(file); err == nil {
		t.Error("written without a change")
	}
	must(t, r.server.Set("string", "other"))
	must(t, r.close(t.Context()))
	if _, err := os.Stat(file); err != nil {
		t.Error("a change is not written")
	}
}

func TestADamagedSnapshotIsRefusedAndNamed(t *testing.T) {
	file := filepath.Join(t.TempDir(), "jobs.snapshot")
	must(t, os.WriteFile(file, []byte("half"), 0o600))
	if _, err := startRedis(file); err == nil || !strings.Contains(err.Error(), "delete "+file) {
		t.Errorf("error %v", err)
	}
}

func TestASecretOfTheStateFolderIsMadeOnce(t *testing.T) {
	file := filepath.Join(t.TempDir(), "secret")
	first, err := secret(file)
	must(t, err)
	second, err := secret(file)
	must(t, err)
	other, err := secret(file + "2")
	must(t, err)
	if first != second || first == other {
		t.Errorf("%q, then %q; another file %q", first, second, other)
	}
	must(t, os.WriteFile(file, []byte("short\n"), 0o600))
	if _, err := secret(file); err == nil {
		t.Error("a damaged secret is used")
	}
}

func TestTheExampleIsOneThatWorks(t *testing.T) {
	groups := []group{{"empty", 0}, {"ten", 10}, {"all", 50}}
	const entry = "- {issuer: %, subject: alice, types: all, groups: [&], patients: all}\n"
	grants := func(pairs ...string) string { // issuer, groups
		text := ""
		for i := 0; i < len(pairs); i += 2 {
			text += strings.NewReplacer("%", pairs[i], "&", pairs[i+1]).Replace(entry)
		}
		return text
	}
	for name, row := range map[string]struct{ access, subject, group string }{
		"no access file":      {"", demoSubject, "ten"},
		"of the file":         {grants("urn:sluice:development", "all"), "alice", "all"},
		"an empty group":      {grants("urn:sluice:development", "empty"), "alice", "empty"},
		"after other issuers": {grants("https://other", "all", "urn:sluice:development", "'none', ten"), "alice", "ten"},
		"other issuers":       {grants("https://other", "all"), "", ""},
		"other groups":        {grants("urn:sluice:development", "none"), "", ""},
	} {
		file := ""
		if row.access != "" {
			file = filepath.Join(t.TempDir(), "access.yaml")
			must(t, os.WriteFile(file, []byte(row.access), 0o600))
		}
		subject, id, err := example(file, groups)
		if !reflect.DeepEqual([]string{subject, id}, []string{row.subject, row.group}) || (err != nil) != (row.group == "") {
			t.Errorf("%s: %q, %q, %v", name, subject, id, err)
		}
	}
}

func TestAnAddressOfEveryInterfaceNeedsABaseURL(t *testing.T) {
	for addr, good := range map[string]bool{
		"127.0.0.1:0": true, "[::1]:0": true, "localhost:8080": true, "192.0.2.1:8080": true,
		"0.0.0.0:8080": false, "[::]:8080": false, ":8080": false, "8080": false,
	} {
		_, err := parse([]string{"--state", t.TempDir(), "--addr", addr}, os.Stderr)
		if (err == nil) != good {
			t.Errorf("%s: %v", addr, err)
		}
		if _, err := parse([]string{"--state", t.TempDir(), "--addr", addr, "--base-url", "https://host/fhir"}, os.Stderr); err != nil &&
			addr != "8080" {
			t.Errorf("%s with a base URL: %v", addr, err)
		}
	}
}

func TestHelpAndVersionGoToStandardOutput(t *testing.T) {
	for arg, parts := range map[string][]string{
		"--help": {"All services of Sluice", "--state", "(default 127.0.0.1:8080)"}, "--version": {"standalone ", "go1."},
	} {
		var stdout, stderr bytes.Buffer
		err := run(t.Context(), []string{arg}, &stdout, &stderr)
		if !errors.Is(err, flag.ErrHelp) || stderr.Len() > 0 {
			t.Errorf("%s: %v, %s", arg, err, &stderr)
		}
		for _, part := range parts {
			if !strings.Contains(stdout.String(), part) {
				t.Errorf("%s: %q is not in %s", arg, part, &stdout)
			}
		}
	}
	if _, err := parse([]string{"--bogus"}, io.Discard); err == nil || errors.Is(err, flag.ErrHelp) ||
		!strings.Contains(err.Error(), "-bogus") {
		t.Errorf("an unknown flag: %v", err)
	}
}

func TestPrintedWordsAreQuotedForAShell(t *testing.T) {
	for text, want := range map[string]string{
		"/home/me/.state": "/home/me/.state", "my state": "'my state'", "it's": `'it'\''s'`, "": "''", "$x": "'$x'",
	} {
		if got := quoted(text); got != want {
			t.Errorf("%q: %s, want %s", text, got, want)
		}
	}
}
