package objects_test

import (
	"crypto/rand"
	"errors"
	"runtime"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/objects"
	"github.com/sluice-fhir/sluice/pkg/objects/objectstest"
	"github.com/sluice-fhir/sluice/pkg/testenv"
)

// TestMain also detects a part that is still being sent after its writer has ended.
func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestStoreOnMinIO(t *testing.T) {
	objectstest.Run(t, func(t *testing.T) objects.Config { return place(t) })
}

func place(t testing.TB) objects.Config {
	t.Helper()
	s3 := testenv.ObjectStore(t)
	return objects.Config{
		Endpoint: s3.Endpoint, AccessKey: s3.AccessKey, SecretKey: s3.SecretKey, Bucket: s3.Bucket,
	}
}

// Memory depends on the part size, not on the object (pitfall 6).
func TestPitfall6MemoryDoesNotFollowTheObject(t *testing.T) {
	const size = 24 * objects.MinPartSize
	cfg := place(t)
	cfg.PartSize = objects.MinPartSize
	store, err := objects.Open(cfg)
	must(t, err)
	defer store.Close()
	must(t, store.EnsureBucket(t.Context()))
	chunk := make([]byte, 1<<20)
	_, _ = rand.Read(chunk) // never fails
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	w := store.Create(t.Context(), "large", "")
	for written := 0; written < size; written += len(chunk) {
		_, err := w.Write(chunk)
		must(t, err)
	}
	stored, err := w.Commit()
	if err != nil || stored.Size != size {
		t.Fatalf("Commit: %+v, %v", stored, err)
	}
	runtime.ReadMemStats(&after)
	// Two parts are in use at a time; the rest is requests.
	if allocated := after.TotalAlloc - before.TotalAlloc; allocated > size/4 {
		t.Errorf("writing %d bytes allocated %d: the parts are not reused", size, allocated)
	}
	must(t, store.Delete(t.Context(), "large"))
}

func TestOpenRefuses(t *testing.T) {
	good := objects.Config{
		Endpoint: "http://127.0.0.1:9000", AccessKey: "key", SecretKey: "hush-hush", Bucket: "sluice",
	}
	if _, err := objects.Open(good); err != nil {
		t.Fatalf("a good configuration: %v", err)
	}
	for name, test := range map[string]struct {
		spoil func(*objects.Config)
		says  string
	}{
		"no endpoint":     {func(c *objects.Config) { c.Endpoint = "" }, "endpoint"},
		"no scheme":       {func(c *objects.Config) { c.Endpoint = "127.0.0.1:9000" }, "endpoint"},
		"other scheme":    {func(c *objects.Config) { c.Endpoint = "s3://127.0.0.1:9000" }, "endpoint"},
		"path":            {func(c *objects.Config) { c.Endpoint += "/minio" }, "endpoint"},
		"keys in the URL": {func(c *objects.Config) { c.Endpoint = "http://key:hush-hush@127.0.0.1" }, "endpoint"},
		"no access key":   {func(c *objects.Config) { c.AccessKey = "" }, "access key"},
		"no secret key":   {func(c *objects.Config) { c.SecretKey = "" }, "secret key"},
		"no bucket":       {func(c *objects.Config) { c.Bucket = "" }, "bucket"},
		"bad bucket":      {func(c *objects.Config) { c.Bucket = "Not_A_Bucket" }, "bucket"},
		"small parts":     {func(c *objects.Config) { c.PartSize = objects.MinPartSize - 1 }, "part size"},
		"huge parts":      {func(c *objects.Config) { c.PartSize = 2 << 30 }, "part size"},
		"other SSE":       {func(c *objects.Config) { c.ServerSide = "aes" }, "server-side encryption"},
		"SSE without key": {func(c *objects.Config) { c.ServerSide = "kms:" }, "server-side encryption"},
		"SSE with a line": {func(c *objects.Config) { c.ServerSide = "kms:a\nb" }, "server-side encryption"},
	} {
		cfg := good
		test.spoil(&cfg)
		_, err := objects.Open(cfg)
		if err == nil || !strings.Contains(err.Error(), test.says) {
			t.Errorf("%s: %v, want an error about the %s", name, err, test.says)
		} else if strings.Contains(err.Error(), "hush-hush") {
			t.Errorf("%s: the error contains the secret", name)
		}
	}
	_, err := objects.Open(objects.Config{})
	for _, problem := range []string{"endpoint", "access key", "bucket"} {
		if err == nil || !strings.Contains(err.Error(), problem) {
			t.Errorf("an empty configuration: error %v does not name the %s", err, problem)
		}
	}
}

// Keys may be rotated, and clocks may be wrong, in the middle of an export: that costs it time, not its attempts.
func TestWrongKeys(t *testing.T) {
	cfg := place(t)
	cfg.SecretKey = "wrong-secret"
	store, err := objects.Open(cfg)
	must(t, err)
	defer store.Close()
	if err := store.Check(t.Context()); !errors.Is(err, export.ErrUnavailable) {
		t.Errorf("Check: %v, want ErrUnavailable", err)
	}
	_, err = store.Open(t.Context(), "x", 0, -1)
	if !errors.Is(err, export.ErrUnavailable) || !strings.Contains(err.Error(), "SignatureDoesNotMatch") {
		t.Errorf("Open: %v, want ErrUnavailable that names the reason", err)
	}
}
