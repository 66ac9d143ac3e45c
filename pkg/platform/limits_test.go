package platform_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sluice-fhir/sluice/pkg/platform"
	"github.com/sluice-fhir/sluice/pkg/testenv"
)

// Every way to hold a connection by doing nothing, or next to nothing, ends.
func TestAClientThatStallsIsCut(t *testing.T) {
	const limit = 10 * time.Second
	endless := func(w http.ResponseWriter, _ *http.Request) {
		for {
			if _, err := w.Write(make([]byte, 1<<20)); err != nil {
				return
			}
		}
	}
	short := func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "short") }
	flush := func(w http.ResponseWriter, _ *http.Request) { w.(http.Flusher).Flush() }
	body := func(w http.ResponseWriter, r *http.Request) {
		if _, err := io.ReadAll(r.Body); err != nil {
			w.WriteHeader(http.StatusBadRequest)
		}
	}
	for name, row := range map[string]struct {
		handler http.HandlerFunc
		trickle string // sent a byte a second, after the request
		request string
		takes   bool // what is answered
	}{
		"sends nothing":              {short, "", "", true},
		"sends half a line":          {short, "", "GET / HT", true},
		"trickles its headers":       {short, strings.Repeat("x", 1000), "GET / HTTP/1.1\r\nHost: h\r\nX-Y: ", true},
		"trickles its body":          {body, strings.Repeat("x", 1000), "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1000\r\n\r\n", true},
		"trickles a body in vain":    {short, strings.Repeat("x", 1000), "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1000\r\n\r\n", true},
		"idles after its answer":     {short, "", "GET / HTTP/1.1\r\nHost: h\r\n\r\n", true},
		"takes none of a file":       {endless, "", "GET / HTTP/1.1\r\nHost: h\r\n\r\n", false},
		"takes no short answer":      {short, "", "GET / HTTP/1.1\r\nHost: h\r\n\r\n", false},
		"takes no flushed headers":   {flush, "", "GET / HTTP/1.1\r\nHost: h\r\n\r\n", false},
		"takes no refusal of a line": {short, "", "NONSENSE\r\n\r\n", true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				listener := newPipes()
				ctx, stop := context.WithCancel(t.Context())
				served := make(chan error, 1)
				limits := platform.Limits{Header: limit, Request: limit, Idle: limit, Stall: limit}
				go func() { served <- platform.ServeHTTP(ctx, listener, row.handler, platform.WithLimits(limits)) }()
				conn, err := listener.dial(ctx, "", "")
				if err != nil {
					t.Fatal(err)
				}
				began := time.Now()
				closed := make(chan struct{})
				go func() {
					defer close(closed)
					if row.takes {
						_, _ = io.Copy(io.Discard, conn)
					}
				}()
				_, err = io.WriteString(conn, row.request)
				for i := 0; i < len(row.trickle) && err == nil; i++ {
					time.Sleep(time.Second)
					_, err = io.WriteString(conn, row.trickle[i:i+1])
				}
				if !row.takes {
					time.Sleep(2*limit + time.Second)
					_, err = conn.Write([]byte("x"))
					if !errors.Is(err, io.ErrClosedPipe) {
						t.Errorf("the connection is open after twice the limit: %v", err)
					}
				}
				<-closed
				if held := time.Since(began); held > 3*limit {
					t.Errorf("the connection was held for %s", held)
				}
				stop()
				if err := errors.Join(<-served, conn.Close()); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// A download that goes on lives, however slow it is and however long its handler waits in between.
func TestASlowDownloadLives(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const limit, size = 10 * time.Second, 256 << 10
		listener := newPipes()
		ctx, stop := context.WithCancel(t.Context())
		served := make(chan error, 1)
		go func() {
			served <- platform.ServeHTTP(ctx, listener, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				time.Sleep(3 * limit) // until there is something to write
				if _, err := w.Write(make([]byte, size)); err != nil {
					t.Error(err)
				}
				if err := r.Context().Err(); err != nil {
					t.Error(err)
				}
			}), platform.WithLimits(platform.Limits{Header: limit, Request: limit, Idle: limit, Stall: limit}))
		}()
		conn, err := listener.dial(ctx, "", "")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(conn, "GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		got := 0
		for buffer := make([]byte, 8<<10); ; time.Sleep(limit / 10) {
			n, err := conn.Read(buffer)
			got += n
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		if got < size {
			t.Errorf("%d bytes of %d came", got, size)
		}
		stop()
		if err := errors.Join(<-served, conn.Close()); err != nil {
			t.Error(err)
		}
	})
}

// In HTTP/2 a client can leave one answer where it is and be alive otherwise. The answer ends, and the others go on.
func TestAnHTTP2AnswerThatStallsIsCut(t *testing.T) {
	authority := testenv.NewAuthority(t)
	cut := make(chan struct{})
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/short" {
			_, _ = io.WriteString(w, r.Proto)
			return
		}
		var err error
		for err == nil {
			_, err = w.Write(make([]byte, 64<<10))
		}
		close(cut)
	})
	addr := secured(t, authority.Issue(time.Now().Add(time.Hour), "127.0.0.1"), nil, handler,
		platform.WithLimits(platform.Limits{Stall: 200 * time.Millisecond}))
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: authority.Pool()}, ForceAttemptHTTP2: true}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport}
	stalled, err := client.Get("https://" + addr + "/endless")
	if err != nil {
		t.Fatal(err)
	}
	defer stalled.Body.Close()
	<-cut // nobody reads: the client's window is all that was sent
	if _, err := io.Copy(io.Discard, stalled.Body); err == nil {
		t.Error("an answer that was cut ended like a whole one")
	}
	short, err := client.Get("https://" + addr + "/short")
	if err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(short.Body)
	if err := errors.Join(err, short.Body.Close()); err != nil || string(text) != "HTTP/2.0" {
		t.Errorf("%q, %v", text, err)
	}
}

// inTime serves the handler by TLS in the test's own time, all limits being the one given, until done is called.
func inTime(t *testing.T, limit time.Duration, handler http.HandlerFunc) (*pipes, *testenv.Authority, func()) {
	t.Helper()
	authority := testenv.NewAuthority(t)
	cert, key := authority.Issue(time.Now().Add(time.Hour), "server").Files(t, t.TempDir())
	certificate, err := platform.OpenCertificate(cert, key, slog.New(slog.DiscardHandler), time.Now)
	if err != nil {
		t.Fatal(err)
	}
	listener := newPipes()
	ctx, stop := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() {
		served <- platform.ServeHTTP(ctx, listener, handler, platform.WithTLS(platform.ServerTLS(certificate, nil)),
			platform.WithLimits(platform.Limits{Header: limit, Request: limit, Idle: limit, Stall: limit}))
	}()
	return listener, authority, func() {
		stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
	}
}

// An HTTP/2 answer whose handler has nothing to write for a while is not stalled.
func TestAnHTTP2AnswerMayPause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const limit = 10 * time.Second
		listener, authority, done := inTime(t, limit, func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.WriteString(w, r.Proto)
			w.(http.Flusher).Flush()
			time.Sleep(3 * limit)
			_, _ = io.WriteString(w, " and more")
		})
		transport := &http.Transport{
			DialContext: listener.dial, TLSClientConfig: &tls.Config{RootCAs: authority.Pool()}, ForceAttemptHTTP2: true,
		}
		response, err := (&http.Client{Transport: transport}).Get("https://server/")
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(response.Body)
		if err := errors.Join(err, response.Body.Close()); err != nil || string(text) != "HTTP/2.0 and more" {
			t.Errorf("%q, %v", text, err)
		}
		transport.CloseIdleConnections()
		done()
	})
}

// A client that takes nothing at all from an HTTP/2 connection, not even what belongs to the protocol, is cut.
func TestAnHTTP2ConnectionThatStallsIsCut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const limit = 10 * time.Second
		listener, authority, done := inTime(t, limit, http.NotFound)
		conn, err := listener.dial(t.Context(), "", "")
		if err != nil {
			t.Fatal(err)
		}
		// In TLS 1.2 the server has the last word of the handshake, so that all it writes from then on is HTTP/2.
		secure := tls.Client(conn, &tls.Config{
			RootCAs: authority.Pool(), ServerName: "server", NextProtos: []string{"h2"}, MaxVersion: tls.VersionTLS12,
		})
		const settings = "\x00\x00\x00\x04\x00\x00\x00\x00\x00" // none that differ
		if _, err := io.WriteString(secure, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"+settings); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * limit)
		if _, err := conn.Write([]byte("x")); !errors.Is(err, io.ErrClosedPipe) {
			t.Errorf("the connection is open after twice the limit: %v", err)
		}
		if err := conn.Close(); err != nil {
			t.Error(err)
		}
		done()
	})
}

func TestAHandshakeThatStallsIsCut(t *testing.T) {
	authority := testenv.NewAuthority(t)
	addr := secured(t, authority.Issue(time.Now().Add(time.Hour), "127.0.0.1"), nil, http.NotFoundHandler(),
		platform.WithLimits(platform.Limits{Header: 50 * time.Millisecond}))
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := io.ReadAll(conn); err != nil { // until the server hangs up
		t.Error(err)
	}
}

// One connection more than may be open is served when one of them is closed.
func TestConnectionsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		listener := newPipes()
		ctx, stop := context.WithCancel(t.Context())
		served := make(chan error, 1)
		go func() {
			served <- platform.ServeHTTP(ctx, listener, http.NotFoundHandler(), platform.WithLimits(platform.Limits{Connections: 2}))
		}()
		first, err := listener.dial(ctx, "", "")
		if err != nil {
			t.Fatal(err)
		}
		second, err := listener.dial(ctx, "", "")
		if err != nil {
			t.Fatal(err)
		}
		third := make(chan net.Conn)
		go func() {
			conn, err := listener.dial(ctx, "", "")
			if err != nil {
				t.Error(err)
			}
			third <- conn
		}()
		synctest.Wait()
		select {
		case <-third:
			t.Error("a third connection was taken beside two")
		default:
		}
		if err := first.Close(); err != nil {
			t.Fatal(err)
		}
		conn := <-third
		stop()
		if err := errors.Join(<-served, second.Close(), conn.Close()); err != nil {
			t.Error(err)
		}
	})
}

func TestHeadersAreBounded(t *testing.T) {
	addr := listening(t, http.HandlerFunc(protocol))
	// "Connection" comes on top of those that a row has.
	for name, row := range map[string]struct {
		headers string
		status  int
	}{
		"as many as may be": {strings.Repeat("X-Y: z\r\n", 99), 200},
		"one too many":      {strings.Repeat("X-Y: z\r\n", 100), 431},
		"different ones":    {numbered(100), 431},
		"long enough":       {"X-Y: " + strings.Repeat("z", 30<<10) + "\r\n", 200},
		"too long":          {"X-Y: " + strings.Repeat("z", 40<<10) + "\r\n", 431},
	} {
		conn, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		_, err = io.WriteString(conn, "GET / HTTP/1.1\r\nHost: h\r\n"+row.headers+"Connection: close\r\n\r\n")
		if err != nil {
			t.Fatal(err)
		}
		response, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if err := errors.Join(response.Body.Close(), conn.Close()); err != nil || response.StatusCode != row.status {
			t.Errorf("%s: %d, %v, want %d", name, response.StatusCode, err, row.status)
		}
	}
}

func numbered(n int) string {
	var all strings.Builder
	for i := range n {
		fmt.Fprintf(&all, "X-%d: z\r\n", i)
	}
	return all.String()
}

// lines hands over what is logged, a line at a time.
type lines chan string

func (l lines) Write(line []byte) (int, error) { l <- string(line); return len(line), nil }

// What the server itself has to say is JSON too, and a client cannot fill the log with handshakes.
func TestTheServersOwnLog(t *testing.T) {
	authority := testenv.NewAuthority(t)
	log := make(lines, 10)
	addr := secured(t, authority.Issue(time.Now().Add(time.Hour), "127.0.0.1"), nil,
		http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic("broken") }),
		platform.WithLog(slog.New(slog.NewJSONHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug}))))
	for level, roots := range map[string]*x509.CertPool{"DEBUG": x509.NewCertPool(), "ERROR": authority.Pool()} {
		transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}, DisableKeepAlives: true}
		if response, err := (&http.Client{Transport: transport}).Get("https://" + addr + "/"); err == nil {
			t.Errorf("answered %s", response.Status)
		}
		if line := <-log; !strings.Contains(line, `"level":"`+level+`"`) {
			t.Errorf("logged %s, want the level %s", line, level)
		}
	}
}
