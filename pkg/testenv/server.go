package testenv

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/google/uuid"

	"github.com/sluice-fhir/sluice/pkg/testenv/servers"
)

// RedisServer starts a Redis of the test's own with settings such as "--appendonly", "yes". It returns its URL.
func RedisServer(t testing.TB, settings ...string) string {
	t.Helper()
	server, err := servers.NewRedis(t.Context(), filepath.Join(t.TempDir(), "redis"), settings...)
	return owned(t, server, err).URL()
}

// SecureRedis starts a Redis for this test that only accepts TLS connections, with the certificate and one user. It returns
// its URL; the caller has to trust the certificate's authority.
func SecureRedis(t testing.TB, certificate Certificate) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "redis")
	server, err := servers.NewSecureRedis(t.Context(), dir, certificate.Cert, certificate.Key)
	return owned(t, server, err).URL()
}

// SecureObjectStore starts a MinIO for this test that only serves https, with the certificate.
func SecureObjectStore(t testing.TB, certificate Certificate) S3 {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "minio")
	server, err := servers.NewSecureMinIO(t.Context(), dir, certificate.Cert, certificate.Key)
	store := owned(t, server, err)
	return S3{
		Endpoint: store.Endpoint(), AccessKey: store.AccessKey(), SecretKey: store.SecretKey(),
		Bucket: "test-" + uuid.NewString(),
	}
}

// SecurePostgres starts a PostgreSQL for this test that accepts TLS connections with the certificate, and plain ones. Its
// URL has no TLS parameters.
func SecurePostgres(t testing.TB, certificate Certificate) string {
	t.Helper()
	server, err := servers.NewSecurePostgres(t.Context(), reachable(t), certificate.Cert, certificate.Key)
	return owned(t, server, err).URL()
}

// owned closes the server of a test when the test ends.
func owned[S interface{ Close() error }](t testing.TB, server S, err error) S {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := server.Close(); err != nil {
			t.Error(err)
		}
	})
	return server
}

// reachable returns a folder for a server with another account. Only root can enter the parent of t.TempDir.
func reachable(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "sluice-server-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}
