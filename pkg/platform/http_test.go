package platform_test

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sluice-fhir/sluice/pkg/platform"
)

// pipes is a listener without a network: its connections live in the test's own time.
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

// download answers in two parts: the second when it is told to go on.
func download(began, goOn chan struct{}) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, "one ")
		_ = http.NewResponseController(w).Flush()
		close(began)
		<-goOn
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

func TestServeHTTPDrains(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		listener := newPipes()
		client, disconnect := listener.client()
		ctx, stop := context.WithCancel(t.Context())
		served, answers := make(chan error, 1), make(chan answer, 1)
		began, goOn := make(chan struct{}), make(chan struct{})
		go func() { served <- platform.ServeHTTP(ctx, listener, download(began, goOn)) }()
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
		close(goOn)
		if got := <-answers; got.err != nil || got.body != "one two" {
			t.Errorf("the running request got %+v", got)
		}
		if err := <-served; err != nil {
			t.Error(err)
		}
		disconnect()
	})
}

func TestServeHTTPCutsRequestsThatOutlastTheDrain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		listener := newPipes()
		client, disconnect := listener.client()
		ctx, stop := context.WithCancel(t.Context())
		served, answers := make(chan error, 1), make(chan answer, 1)
		began, goOn := make(chan struct{}), make(chan struct{})
		go func() { served <- platform.ServeHTTP(ctx, listener, download(began, goOn)) }()
		go get(client, answers)
		<-began
		stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
		if got := <-answers; got.err == nil {
			t.Errorf("the request got %+v and no error", got)
		}
		close(goOn)
		disconnect()
	})
}

func TestServeHTTPDropsClientsThatSendNoHeaders(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		listener := newPipes()
		ctx, stop := context.WithCancel(t.Context())
		served := make(chan error, 1)
		go func() { served <- platform.ServeHTTP(ctx, listener, http.NotFoundHandler()) }()
		conn, err := listener.dial(ctx, "", "")
		if err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		_, err = io.ReadAll(conn)
		if waited := time.Since(began); err != nil || waited > time.Minute {
			t.Errorf("closed after %s: %v", waited, err)
		}
		stop()
		if err := errors.Join(<-served, conn.Close()); err != nil {
			t.Error(err)
		}
	})
}

func TestServeHTTPReportsABrokenListener(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if err := listener.Close(); err != nil {
		t.Fatal(err)
	}
	if err := platform.ServeHTTP(t.Context(), listener, http.NotFoundHandler()); !errors.Is(err, net.ErrClosed) {
		t.Errorf("got %v", err)
	}
}
