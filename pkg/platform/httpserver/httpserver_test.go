package httpserver_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/sluice-fhir/sluice/pkg/platform/certs"
	"github.com/sluice-fhir/sluice/pkg/platform/httpserver"
	"github.com/sluice-fhir/sluice/pkg/testenv"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// must ends the test after an error.
func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// pipes is a listener without a network, for synctest bubbles.
type pipes struct {
	conns  chan net.Conn
	closed chan struct{}
}

func newPipes() *pipes { return &pipes{conns: make(chan net.Conn), closed: make(chan struct{})} }

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case conn := <-p.conns:
		return conn, nil
	case <-p.closed:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error   { close(p.closed); return nil }
func (p *pipes) Addr() net.Addr { return &net.TCPAddr{} }

func (p *pipes) dial(context.Context, string, string) (net.Conn, error) {
	ours, theirs := net.Pipe()
	select {
	case p.conns <- theirs:
		return ours, nil
	case <-p.closed:
		return nil, errors.Join(errors.New("refused"), ours.Close(), theirs.Close())
	}
}

func (p *pipes) client() (client *http.Client, done func()) {
	transport := &http.Transport{DialContext: p.dial}
	return &http.Client{Transport: transport}, transport.CloseIdleConnections
}

// start serves the handler on a listener until the test ends.
func start[L net.Listener](t *testing.T, listener L, handler http.Handler, options httpserver.Options) L {
	ctx, stop := context.WithCancel(context.WithoutCancel(t.Context()))
	served := make(chan error, 1)
	go func() { served <- httpserver.Serve(ctx, listener, handler, options) }()
	t.Cleanup(func() {
		stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	return listener
}

// connect opens a connection until the test ends, without sending anything.
func connect(t *testing.T, listener *pipes) net.Conn {
	t.Helper()
	conn, err := listener.dial(t.Context(), "", "")
	must(t, err)
	t.Cleanup(func() { conn.Close() })
	return conn
}

// download sends its response in two halves, the second after proceed is closed.
func download(began, proceed chan struct{}) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, "one ")
		_ = http.NewResponseController(w).Flush()
		close(began)
		<-proceed
		_, _ = io.WriteString(w, "two")
	})
}

type answer struct {
	body string
	err  error
}

func get(client *http.Client, answers chan<- answer) {
	response, err := client.Get("http://server/")
	if err != nil {
		answers <- answer{err: err}
		return
	}
	body, err := io.ReadAll(response.Body)
	answers <- answer{string(body), errors.Join(err, response.Body.Close())}
}

// A stopping server finishes running requests within the drain timeout, and accepts no new ones.
func TestServeDrains(t *testing.T) {
	for name, finishes := range map[string]bool{"a request that finishes": true, "one that does not": false} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				listener := newPipes()
				client, disconnect := listener.client()
				ctx, stop := context.WithCancel(t.Context())
				served, answers := make(chan error, 1), make(chan answer, 1)
				began, proceed := make(chan struct{}), make(chan struct{})
				go func() { served <- httpserver.Serve(ctx, listener, download(began, proceed), httpserver.Options{}) }()
				go get(client, answers)
				<-began

				stop()
				synctest.Wait()
				select {
				case err := <-served:
					t.Fatalf("returned %v while a request was running", err)
				default:
				}
				if response, err := client.Get("http://server/"); err == nil {
					t.Errorf("a new request was answered %s after the stop", response.Status)
				}
				if finishes {
					close(proceed)
				} else {
					defer close(proceed)
				}
				if got := <-answers; (got.err == nil) != finishes || finishes && got.body != "one two" {
					t.Errorf("the running request got %+v", got)
				}
				if err := <-served; err != nil {
					t.Error(err)
				}
				disconnect()
			})
		})
	}
}

func TestServeReturnsListenerErrors(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	must(t, listener.Close())
	if err := httpserver.Serve(t.Context(), listener, http.NotFoundHandler(), httpserver.Options{}); !errors.Is(err, net.ErrClosed) {
		t.Errorf("got %v", err)
	}
}

// serveTLS serves the handler with TLS until the test ends and returns the address.
func serveTLS(t *testing.T, issued testenv.Certificate, clientCAs *x509.CertPool, handler http.Handler, options httpserver.Options) string {
	t.Helper()
	options.TLS = serverTLS(t, issued, clientCAs)
	return serveTCP(t, handler, options)
}

func serverTLS(t *testing.T, issued testenv.Certificate, clientCAs *x509.CertPool) *tls.Config {
	t.Helper()
	cert, key := issued.Files(t, t.TempDir())
	served, err := certs.Open(cert, key, slog.New(slog.DiscardHandler), time.Now)
	must(t, err)
	return certs.ServerTLS(served, clientCAs)
}

// serveTCP serves the handler until the test ends and returns the address.
func serveTCP(t *testing.T, handler http.Handler, options httpserver.Options) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	return start(t, listener, handler, options).Addr().String()
}

func protocol(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, r.Proto) }

func TestTLSListener(t *testing.T) {
	authority, other := testenv.NewAuthority(t), testenv.NewAuthority(t)
	valid := time.Now().Add(time.Hour)
	server, ours, foreign := authority.Issue(valid, "127.0.0.1"), authority.Issue(valid), other.Issue(valid)
	expired := authority.Issue(time.Now().Add(-time.Hour))
	open := serveTLS(t, server, nil, http.HandlerFunc(protocol), httpserver.Options{})
	closed := serveTLS(t, server, authority.Pool(), http.HandlerFunc(protocol), httpserver.Options{})
	with := func(change func(*tls.Config)) *tls.Config {
		config := &tls.Config{RootCAs: authority.Pool(), NextProtos: []string{"h2", "http/1.1"}}
		change(config)
		return config
	}
	for name, row := range map[string]struct {
		addr   string
		config *tls.Config
		want   string // the answer; "": the request fails
	}{
		"1.3":            {open, with(func(*tls.Config) {}), "HTTP/2.0"},
		"1.2":            {open, with(func(c *tls.Config) { c.MaxVersion = tls.VersionTLS12 }), "HTTP/2.0"},
		"without HTTP/2": {open, with(func(c *tls.Config) { c.NextProtos = nil }), "HTTP/1.1"},
		"1.1": {open, with(func(c *tls.Config) {
			c.MinVersion, c.MaxVersion = tls.VersionTLS10, tls.VersionTLS11
		}), ""},
		"CBC cipher": {open, with(func(c *tls.Config) {
			c.MaxVersion, c.CipherSuites = tls.VersionTLS12, []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA}
			c.NextProtos = nil // HTTP/2 forbids it anyway
		}), ""},
		"trusted client":        {closed, with(func(c *tls.Config) { c.Certificates = []tls.Certificate{ours.TLS(t)} }), "HTTP/2.0"},
		"no client certificate": {closed, with(func(*tls.Config) {}), ""},
		"client of another authority": {closed, with(func(c *tls.Config) {
			presented := foreign.TLS(t) // also when the server's list of authorities lacks its issuer
			c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &presented, nil }
		}), ""},
		"expired client certificate": {closed, with(func(c *tls.Config) { c.Certificates = []tls.Certificate{expired.TLS(t)} }), ""},
	} {
		transport := &http.Transport{TLSClientConfig: row.config, ForceAttemptHTTP2: row.config.NextProtos != nil}
		var body []byte
		response, err := (&http.Client{Transport: transport}).Get("https://" + row.addr + "/")
		if err == nil {
			body, err = io.ReadAll(response.Body)
			err = errors.Join(err, response.Body.Close())
		}
		if string(body) != row.want || (err == nil) != (row.want != "") {
			t.Errorf("%s: %q, %v, want %q", name, body, err, row.want)
		}
		transport.CloseIdleConnections()
	}
	response, err := http.Get("http://" + open + "/")
	must(t, err)
	if err := response.Body.Close(); err != nil || response.StatusCode != http.StatusBadRequest {
		t.Errorf("plain HTTP: %s, %v, want 400", response.Status, err)
	}
	http.DefaultTransport.(*http.Transport).CloseIdleConnections()
}
