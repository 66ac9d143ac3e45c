package embeddeds3_test

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/uuid"
	"go.uber.org/goleak"

	"github.com/sluice-fhir/sluice/pkg/objects"
	"github.com/sluice-fhir/sluice/pkg/objects/objectstest"
	"github.com/sluice-fhir/sluice/services/standalone/internal/embeddeds3"
)

const access, secret = "embedded-access", "embedded-secret"

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m,
		// Close leaves fasthttp's clock running, and its cleaner of idle workers for up to ten seconds.
		goleak.IgnoreAnyFunction("github.com/valyala/fasthttp.updateServerDate.func1"),
		goleak.IgnoreAnyFunction("github.com/valyala/fasthttp.(*workerPool).Start.func2"),
	)
}

func TestStoreContract(t *testing.T) {
	server := start(t, t.TempDir())
	t.Cleanup(func() { stop(t, server) })
	objectstest.Run(t, func(*testing.T) objects.Config {
		return objects.Config{
			Endpoint: server.Endpoint(), AccessKey: access, SecretKey: secret, Bucket: "test-" + uuid.NewString(),
		}
	})
}

func TestRestartKeepsObjects(t *testing.T) {
	parent := t.TempDir()
	t.Chdir(parent)
	for _, step := range []string{"first", "second"} {
		server := start(t, "data") // relative
		store := open(t, server)
		if step == "first" {
			w := store.Create(t.Context(), "jobs/a/x", "text/plain")
			_, err := w.Write([]byte("kept"))
			if _, commit := w.Commit(); err != nil || commit != nil {
				t.Fatal(err, commit)
			}
		} else {
			r, err := store.Open(t.Context(), "jobs/a/x", 0, -1)
			if err != nil {
				t.Fatal(err)
			}
			data, err := io.ReadAll(r)
			if err := errors.Join(err, r.Close()); err != nil || string(data) != "kept" {
				t.Errorf("after a restart: %q, %v", data, err)
			}
		}
		stop(t, server)
		if dir, err := os.Getwd(); err != nil || !same(t, dir, parent) {
			t.Errorf("working directory after Close: %s, %v, want %s", dir, err, parent)
		}
	}
}

func same(t *testing.T, a, b string) bool {
	t.Helper()
	one, err := os.Stat(a)
	if err != nil {
		t.Fatal(err)
	}
	other, err := os.Stat(b)
	if err != nil {
		t.Fatal(err)
	}
	return os.SameFile(one, other)
}

func TestFileModes(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	server := start(t, dir)
	defer stop(t, server)
	w := open(t, server).Create(t.Context(), "jobs/a/x", "text/plain")
	if _, err := w.Commit(); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"", "objects", "metadata", "objects/sluice/jobs/a", "objects/sluice/jobs/a/x"} {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%q has mode %v", name, info.Mode())
		}
	}
}

func TestStartRefuses(t *testing.T) {
	dir := t.TempDir()
	if _, err := embeddeds3.Start(t.Context(), embeddeds3.Config{Dir: dir, AccessKey: access}); err == nil {
		t.Error("without a secret key: no error")
	}
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := embeddeds3.Start(t.Context(), config(file)); err == nil {
		t.Error("on a file: no error")
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if server, err := embeddeds3.Start(ended, config(dir)); err == nil {
		stop(t, server)
		t.Error("with an ended context: no error")
	}

	server := start(t, dir)
	before, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := embeddeds3.Start(t.Context(), config(t.TempDir())); err == nil {
		t.Error("a second server: no error")
	}
	if after, err := os.Getwd(); err != nil || after != before {
		t.Errorf("the refused start changed the working directory from %s to %s (%v)", before, after, err)
	}
	stop(t, server)
	stop(t, server) // a second Close succeeds
}

func config(dir string) embeddeds3.Config {
	return embeddeds3.Config{Dir: dir, AccessKey: access, SecretKey: secret}
}

func start(t *testing.T, dir string) *embeddeds3.Server {
	t.Helper()
	server, err := embeddeds3.Start(t.Context(), config(dir))
	if err != nil {
		t.Fatal(err)
	}
	return server
}

func stop(t *testing.T, server *embeddeds3.Server) {
	t.Helper()
	if err := server.Close(); err != nil {
		t.Fatal(err)
	}
}

func open(t *testing.T, server *embeddeds3.Server) *objects.Store {
	t.Helper()
	store, err := objects.Open(objects.Config{
		Endpoint: server.Endpoint(), AccessKey: access, SecretKey: secret, Bucket: "sluice",
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(store.Close)
	if err := store.EnsureBucket(t.Context()); err != nil {
		t.Fatal(err)
	}
	return store
}
