package testenv

import (
	"context"
	"crypto/tls"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"
)

const minioVariable = "SLUICE_TEST_MINIO_BIN" // the server's program

// RedisServer starts a Redis of the test's own with settings such as "--appendonly", "yes". It returns its URL.
func RedisServer(t testing.TB, settings ...string) string {
	t.Helper()
	dir := t.TempDir()
	socket := filepath.Join(dir, "redis")
	args := append([]string{"--port", "0", "--unixsocket", socket, "--dir", dir, "--save", ""}, settings...)
	launch(t, exec.CommandContext(context.Background(), "redis-server", args...), func() bool {
		_, err := os.Stat(socket)
		return err == nil
	})
	return "unix://" + socket
}

// SecureRedis starts a Redis for this test that only accepts TLS connections, with the certificate and one user. It returns
// its URL; the caller has to trust the certificate's authority.
func SecureRedis(t testing.TB, certificate Certificate) string {
	t.Helper()
	dir := t.TempDir()
	cert, key := certificate.Files(t, dir)
	password := uuid.NewString()
	port := strconv.Itoa(freePort(t))
	launch(t, exec.CommandContext(context.Background(), "redis-server", "--bind", "127.0.0.1", "--port", "0", "--tls-port",
		port, "--tls-cert-file", cert, "--tls-key-file", key, "--tls-auth-clients", "no", "--save", "", "--dir", dir,
		"--maxmemory-policy", "noeviction", "--user", "default", "off", "--user", "sluice", "on", ">"+password,
		"~*", "&*", "+@all"),
		func() bool { return listens(port) })
	return "rediss://sluice:" + password + "@127.0.0.1:" + port + "/0"
}

// SecureObjectStore starts a MinIO for this test that only serves https, with the certificate.
func SecureObjectStore(t testing.TB, certificate Certificate) S3 {
	t.Helper()
	program := os.Getenv(minioVariable)
	if program == "" {
		t.Fatalf("%s is not set: this test starts a MinIO server; run `make test`", minioVariable)
	}
	dir := t.TempDir()
	certs := filepath.Join(dir, "certs")
	if err := os.MkdirAll(certs, 0o700); err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string][]byte{"public.crt": certificate.Cert, "private.key": certificate.Key} {
		if err := os.WriteFile(filepath.Join(certs, name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	port := strconv.Itoa(freePort(t))
	store := S3{
		Endpoint: "https://127.0.0.1:" + port, AccessKey: uuid.NewString()[:16], SecretKey: uuid.NewString(),
		Bucket: "test-" + uuid.NewString(),
	}
	command := exec.CommandContext(context.Background(), program, "server", "--address", "127.0.0.1:"+port,
		"--certs-dir", certs, filepath.Join(dir, "data"))
	command.Env = append(os.Environ(), "MINIO_ROOT_USER="+store.AccessKey, "MINIO_ROOT_PASSWORD="+store.SecretKey,
		"MINIO_BROWSER=off", "MINIO_UPDATE=off")
	transport := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, DisableKeepAlives: true}
	launch(t, command, func() bool {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		asked, err := http.NewRequestWithContext(ctx, http.MethodGet, store.Endpoint+"/minio/health/cluster", nil)
		if err != nil {
			return false
		}
		answer, err := transport.RoundTrip(asked)
		if err != nil {
			return false
		}
		return answer.Body.Close() == nil && answer.StatusCode == http.StatusOK
	})
	return store
}

// SecurePostgres starts a PostgreSQL for this test that accepts TLS connections with the certificate, and plain ones. Its
// URL has no TLS parameters.
func SecurePostgres(t testing.TB, certificate Certificate) string {
	t.Helper()
	p := newPostgres(t)
	cert, key := certificate.Files(t, p.dir)
	if who := p.account.Credential; who != nil {
		for _, file := range []string{cert, key} {
			if err := os.Chown(file, int(who.Uid), int(who.Gid)); err != nil {
				t.Fatal(err)
			}
		}
	}
	p.settings = []string{"-c", "ssl=on", "-c", "ssl_cert_file=" + cert, "-c", "ssl_key_file=" + key}
	p.begin()
	parsed, err := url.Parse(p.URL())
	if err != nil {
		t.Fatal(err)
	}
	parsed.RawQuery = ""
	return parsed.String()
}

// launch starts a server, stops it at the end of the test, and returns when it is ready.
func launch(t testing.TB, command *exec.Cmd, ready func() bool) {
	t.Helper()
	command.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	ended, err := startServer(command, ready)
	if ended != nil {
		t.Cleanup(func() {
			_ = command.Process.Kill() // it may have exited
			<-ended
		})
	}
	if err != nil {
		t.Fatal(err)
	}
}

func listens(port string) bool {
	conn, err := (&net.Dialer{Timeout: time.Second}).Dial("tcp", "127.0.0.1:"+port)
	return err == nil && conn.Close() == nil
}
