// Package testenv gives each test its own Redis database, S3 bucket and PostgreSQL database on the real servers that
// `make test` starts, or a server of its own. Without servers a test fails; it is not skipped.
package testenv

import (
	"context"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/redis/go-redis/v9"
)

// The variables that `make test` sets.
const (
	redisVariable    = "SLUICE_TEST_REDIS"    // redis://127.0.0.1:6379, started with --databases 1024 or so
	s3Variable       = "SLUICE_TEST_S3"       // http://access:secret@127.0.0.1:9000
	postgresVariable = "SLUICE_TEST_POSTGRES" // postgres://user:password@127.0.0.1:5432/postgres?sslmode=disable
)

// Redis returns the URL of an empty Redis database that no other test uses.
func Redis(t testing.TB) string {
	t.Helper()
	base := server(t, redisVariable)
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()

	opts, err := redis.ParseURL(base.String())
	if err != nil {
		t.Fatalf("%s: %v", redisVariable, err)
	}
	control := redis.NewClient(opts)
	defer control.Close()
	databases, err := control.ConfigGet(ctx, "databases").Result()
	if err != nil {
		t.Fatalf("redis at %s: %v", base.Host, err)
	}
	var count int64
	if _, err := fmt.Sscan(databases["databases"], &count); err != nil || count < 2 {
		t.Fatalf("redis has %q databases, want at least 2", databases["databases"])
	}
	next, err := control.Incr(ctx, "sluice-test-database").Result()
	if err != nil {
		t.Fatalf("redis at %s: %v", base.Host, err)
	}
	opts.DB = int(1 + next%(count-1)) // database 0 keeps the counter
	mine := redis.NewClient(opts)
	defer mine.Close()
	if err := mine.FlushDB(ctx).Err(); err != nil {
		t.Fatalf("redis at %s: %v", base.Host, err)
	}
	base.Path = fmt.Sprintf("/%d", opts.DB)
	return base.String()
}

// S3 describes a bucket that no other test uses. The bucket does not exist yet.
type S3 struct {
	Endpoint  string // http://host:port
	AccessKey string
	SecretKey string
	Bucket    string
}

// ObjectStore returns a new bucket name on the real S3 server.
func ObjectStore(t testing.TB) S3 {
	t.Helper()
	base := server(t, s3Variable)
	secret, _ := base.User.Password()
	return S3{
		Endpoint:  base.Scheme + "://" + base.Host,
		AccessKey: base.User.Username(),
		SecretKey: secret,
		Bucket:    "test-" + uuid.NewString(),
	}
}

// Root returns the repository's root folder.
func Root(t testing.TB) string {
	t.Helper()
	_, file, _, ok := runtime.Caller(0)
	if !ok {
		t.Fatal("no caller information")
	}
	return filepath.Join(filepath.Dir(file), "..", "..")
}

// Synthea returns the folder of the Synthea sample (100 patients), which is not part of the repository, and whether it
// exists. CI requires it.
func Synthea(t testing.TB) (string, bool) {
	t.Helper()
	dir := filepath.Join(Root(t), "..", "shared", "data", "synthea-100")
	if _, err := os.Stat(dir); err != nil {
		if os.Getenv("CI") != "" {
			t.Fatalf("the Synthea sample is missing: %v", err)
		}
		return "", false
	}
	return dir, true
}

func server(t testing.TB, variable string) *url.URL {
	t.Helper()
	value := os.Getenv(variable)
	if value == "" {
		t.Fatalf("%s is not set: this test needs a real server; run `make test`", variable)
	}
	parsed, err := url.Parse(value)
	if err != nil || parsed.Host == "" {
		t.Fatalf("%s is not a URL", variable)
	}
	return parsed
}
