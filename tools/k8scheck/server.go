package k8scheck

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	random "math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"time"

	"k8s.io/client-go/rest"
)

// Server is a kube-apiserver on an etcd of its own, on loopback, in a folder that its caller removes.
type Server struct {
	Config *rest.Config // of an administrator

	processes []*exec.Cmd
	logs      []*logBuffer
}

// logBuffer keeps what a process says, which may come from several goroutines.
type logBuffer struct {
	mutex sync.Mutex
	text  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	return l.text.Write(p)
}

// tail is the end of it.
func (l *logBuffer) tail() string {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	text := l.text.Bytes()
	return string(text[max(0, len(text)-4000):])
}

// Start starts both and returns when the server answers that it is ready. One certificate, of an authority of this start
// alone, serves and is asked for everywhere: nobody else of this machine gets in.
func Start(ctx context.Context, etcd, apiserver, dir string) (_ *Server, err error) {
	server := &Server{}
	defer func() {
		if err != nil {
			server.Stop()
			for _, log := range server.logs {
				err = fmt.Errorf("%w\n%s", err, log.tail())
			}
		}
	}()
	if err := writeCertificate(dir); err != nil {
		return nil, err
	}
	ca, certificate, key := filepath.Join(dir, "ca.pem"), filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	ports, err := freePorts(ctx, 3)
	if err != nil {
		return nil, err
	}
	client, peer := "https://127.0.0.1:"+ports[0], "http://127.0.0.1:"+ports[1]
	err = server.run(ctx, etcd, "--data-dir", filepath.Join(dir, "etcd"), "--unsafe-no-fsync", "--log-level", "warn",
		"--listen-client-urls", client, "--advertise-client-urls", client,
		"--cert-file", certificate, "--key-file", key, "--trusted-ca-file", ca, "--client-cert-auth",
		"--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", "default="+peer)
	if err != nil {
		return nil, err
	}
	err = server.run(ctx, apiserver, "--etcd-servers", client,
		"--etcd-cafile", ca, "--etcd-certfile", certificate, "--etcd-keyfile", key,
		"--bind-address", "127.0.0.1", "--secure-port", ports[2], "--endpoint-reconciler-type", "none",
		"--tls-cert-file", certificate, "--tls-private-key-file", key, "--client-ca-file", ca,
		"--service-account-issuer", "https://127.0.0.1", "--service-account-key-file", key,
		"--service-account-signing-key-file", key, "--authorization-mode", "RBAC",
		"--service-cluster-ip-range", "10.96.0.0/16", "--enable-priority-and-fairness=false")
	if err != nil {
		return nil, err
	}
	server.Config = &rest.Config{
		Host:            "https://127.0.0.1:" + ports[2],
		TLSClientConfig: rest.TLSClientConfig{CAFile: ca, CertFile: certificate, KeyFile: key},
		QPS:             1000, Burst: 1000,
	}
	return server, server.ready(ctx)
}

func (s *Server) run(ctx context.Context, program string, args ...string) error {
	log := &logBuffer{}
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} // a test that is killed leaves nothing behind
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start %s: %w", filepath.Base(program), err)
	}
	s.processes, s.logs = append(s.processes, cmd), append(s.logs, log)
	return nil
}

// ready waits until the server says so.
func (s *Server) ready(ctx context.Context) error {
	client, err := rest.HTTPClientFor(s.Config)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	for {
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, s.Config.Host+"/readyz", nil)
		if err != nil {
			return err
		}
		answer, err := client.Do(request)
		if err == nil {
			status := answer.StatusCode
			err = errors.Join(answer.Body.Close())
			if err == nil && status == http.StatusOK {
				return nil
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the kube-apiserver is not ready: %w", ctx.Err())
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// Stop ends both: nothing in them is worth a farewell.
func (s *Server) Stop() {
	for i := len(s.processes) - 1; i >= 0; i-- {
		_ = s.processes[i].Process.Kill() // it may have ended by itself
		_ = s.processes[i].Wait()
	}
	s.processes = nil
}

// freePorts finds ports of loopback below the range that the system hands out by itself. All are held until the last is
// found.
func freePorts(ctx context.Context, n int) ([]string, error) {
	var config net.ListenConfig
	var ports []string
	for range 100 {
		port := strconv.Itoa(20000 + random.IntN(12000)) //nolint:gosec // no secret: the ports are tried, not guessed
		listener, err := config.Listen(ctx, "tcp", net.JoinHostPort("127.0.0.1", port))
		if err != nil {
			continue // taken
		}
		defer listener.Close()
		if ports = append(ports, port); len(ports) == n {
			return ports, nil
		}
	}
	return nil, errors.New("there are no free ports")
}

// writeCertificate writes ca.pem, cert.pem and key.pem: of a server on loopback that is an administrator as a client.
func writeCertificate(dir string) error {
	now := time.Now()
	authority := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "k8scheck"}, NotBefore: now.Add(-time.Minute),
		NotAfter: now.Add(time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	own := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "admin", Organization: []string{"system:masters"}},
		NotBefore: authority.NotBefore, NotAfter: authority.NotAfter, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	authorityKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	of, err := x509.CreateCertificate(rand.Reader, authority, authority, authorityKey.Public(), authorityKey)
	if err != nil {
		return err
	}
	issued, err := x509.CreateCertificate(rand.Reader, own, authority, key.Public(), authorityKey)
	if err != nil {
		return err
	}
	private, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return err
	}
	for name, block := range map[string]*pem.Block{
		"ca.pem":   {Type: "CERTIFICATE", Bytes: of},
		"cert.pem": {Type: "CERTIFICATE", Bytes: issued},
		"key.pem":  {Type: "EC PRIVATE KEY", Bytes: private},
	} {
		if err := os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(block), 0o600); err != nil {
			return err
		}
	}
	return nil
}
