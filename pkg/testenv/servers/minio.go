package servers

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"

	"github.com/google/uuid"
)

const minioVariable = "SLUICE_TEST_MINIO_BIN" // the server's program

// MinIO is an S3 server.
type MinIO struct {
	server
	scheme            string
	accessKey, secret string
}

// NewMinIO starts a MinIO server with its data in dir, which is created or empty.
func NewMinIO(ctx context.Context, dir string) (*MinIO, error) {
	return newMinIO(ctx, &MinIO{server: server{dir: dir}, scheme: "http"})
}

// NewSecureMinIO starts a MinIO server that only serves https, with the certificate and its key (PEM).
func NewSecureMinIO(ctx context.Context, dir string, certificate, key []byte) (*MinIO, error) {
	return newMinIO(ctx, &MinIO{server: server{dir: dir}, scheme: "https"},
		file{"certs/public.crt", certificate}, file{"certs/private.key", key})
}

func newMinIO(ctx context.Context, m *MinIO, certs ...file) (*MinIO, error) {
	path, err := program(minioVariable)
	if err != nil {
		return nil, err
	}
	m.name, m.killing, m.answers = "MinIO", syscall.SIGKILL, m.healthy
	m.accessKey, m.secret = uuid.NewString()[:16], uuid.NewString()
	m.command = func(int) *exec.Cmd {
		command := exec.CommandContext(context.WithoutCancel(ctx), path, "server", "--address", m.Addr(),
			"--certs-dir", filepath.Join(m.dir, "certs"), filepath.Join(m.dir, "data"))
		command.Env = append(os.Environ(), "MINIO_ROOT_USER="+m.accessKey, "MINIO_ROOT_PASSWORD="+m.secret,
			"MINIO_BROWSER=off", "MINIO_UPDATE=off")
		return command
	}
	if err := m.prepare(); err != nil {
		return nil, err
	}
	if err := errors.Join(os.Mkdir(filepath.Join(m.dir, "certs"), 0o700), m.write(certs...)); err != nil {
		return nil, errors.Join(err, m.Close())
	}
	if err := m.begin(ctx); err != nil {
		return nil, err
	}
	return m, nil
}

// Endpoint returns http://host:port, or https.
func (m *MinIO) Endpoint() string { return m.scheme + "://" + m.Addr() }

// AccessKey returns the access key of the root user.
func (m *MinIO) AccessKey() string { return m.accessKey }

// SecretKey returns the secret key of the root user.
func (m *MinIO) SecretKey() string { return m.secret }

// healthy asks for the probe that succeeds when the server accepts writes.
func (m *MinIO) healthy(ctx context.Context) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, m.Endpoint()+"/minio/health/cluster", nil)
	if err != nil {
		return err
	}
	// The certificate may be invalid on purpose.
	transport := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, DisableKeepAlives: true}
	answer, err := transport.RoundTrip(request)
	if err != nil {
		return err
	}
	if answer.StatusCode != http.StatusOK {
		err = fmt.Errorf("health: %s", answer.Status)
	}
	return errors.Join(err, answer.Body.Close())
}
