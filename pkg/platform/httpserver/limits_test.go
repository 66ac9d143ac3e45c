package httpserver_test

import (
	"bufio"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sluice-fhir/sluice/pkg/platform/httpserver"
	"github.com/sluice-fhir/sluice/pkg/testenv"
)

func TestStalledClientsAreDisconnected(t *testing.T) {
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
		trickle string // sent one byte per second, after the request
		request string
		reads   bool // whether the client reads responses
	}{
		"sends nothing":                 {short, "", "", true},
		"sends half a line":             {short, "", "GET / HT", true},
		"trickles its headers":          {short, strings.Repeat("x", 1000), "GET / HTTP/1.1\r\nHost: h\r\nX-Y: ", true},
		"trickles its body":             {body, strings.Repeat("x", 1000), "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1000\r\n\r\n", true},
		"trickles an unread body":       {short, strings.Repeat("x", 1000), "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1000\r\n\r\n", true},
		"is idle after the answer":      {short, "", "GET / HTTP/1.1\r\nHost: h\r\n\r\n", true},
		"does not read a file":          {endless, "", "GET / HTTP/1.1\r\nHost: h\r\n\r\n", false},
		"does not read a short answer":  {short, "", "GET / HTTP/1.1\r\nHost: h\r\n\r\n", false},
		"does not read flushed headers": {flush, "", "GET / HTTP/1.1\r\nHost: h\r\n\r\n", false},
		"sends an invalid line":         {short, "", "NONSENSE\r\n\r\n", true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				listener := start(t, newPipes(), row.handler, allLimits(limit))
				conn := connect(t, listener)
				began := time.Now()
				closed := make(chan struct{})
				go func() {
					defer close(closed)
					if row.reads {
						_, _ = io.Copy(io.Discard, conn)
					}
				}()
				_, err := io.WriteString(conn, row.request)
				for i := 0; i < len(row.trickle) && err == nil; i++ {
					time.Sleep(time.Second)
					_, err = io.WriteString(conn, row.trickle[i:i+1])
				}
				if !row.reads {
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
			})
		})
	}
}

// allLimits sets every time limit to the same value.
func allLimits(limit time.Duration) httpserver.Options {
	return httpserver.Options{Limits: httpserver.Limits{Header: limit, Request: limit, Idle: limit, Stall: limit}}
}

// A client has to keep up with 16 KiB/s, averaged over the limit. It may pause for as long as the limit when it was faster
// before, and the time that the handler takes is not its own.
func TestTheSlowestDownload(t *testing.T) {
	const limit, size = 10 * time.Second, 1 << 20
	every := func(pause time.Duration) func(int) time.Duration { return func(int) time.Duration { return pause } }
	for name, row := range map[string]struct {
		pause func(got int) time.Duration // before each 8 KiB
		whole bool
	}{
		"twice the rate":            {every(250 * time.Millisecond), true},
		"just the rate":             {every(499 * time.Millisecond), true},
		"below the rate":            {every(600 * time.Millisecond), false},
		"32 KiB in each limit":      {every(limit / 4), false},
		"pauses while it is behind": {func(got int) time.Duration { return time.Duration(got/(256<<10)) * 4 * time.Second }, false},
		"pauses now and then": {func(got int) time.Duration {
			if got%(256<<10) == 0 {
				return limit * 3 / 4
			}
			return 250 * time.Millisecond
		}, true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				listener := start(t, newPipes(), http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					for range size >> 16 {
						time.Sleep(limit / 4) // a slow handler
						if _, err := w.Write(make([]byte, 64<<10)); err != nil {
							return
						}
					}
				}), allLimits(limit))
				conn := connect(t, listener)
				if _, err := io.WriteString(conn, "GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"); err != nil {
					t.Fatal(err)
				}
				got := 0
				for buffer := make([]byte, 8<<10); ; {
					n, err := io.ReadFull(conn, buffer)
					got += n
					if err != nil {
						break
					}
					time.Sleep(row.pause(got))
				}
				if whole := got >= size; whole != row.whole {
					t.Errorf("received %d bytes of %d", got, size)
				}
			})
		})
	}
}

// An HTTP/2 client can stall one stream and use others: only the stalled stream ends.
func TestAStalledHTTP2StreamIsReset(t *testing.T) {
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
	addr := serveTLS(t, authority.Issue(time.Now().Add(time.Hour), "127.0.0.1"), nil, handler,
		httpserver.Options{Limits: httpserver.Limits{Stall: 200 * time.Millisecond}})
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: authority.Pool()}, ForceAttemptHTTP2: true}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport}
	stalled, err := client.Get("https://" + addr + "/endless")
	must(t, err)
	defer stalled.Body.Close()
	<-cut // nothing is read, so only the client's window was sent
	if _, err := io.Copy(io.Discard, stalled.Body); err == nil {
		t.Error("a reset stream ended without an error")
	}
	short, err := client.Get("https://" + addr + "/short")
	must(t, err)
	text, err := io.ReadAll(short.Body)
	if err := errors.Join(err, short.Body.Close()); err != nil || string(text) != "HTTP/2.0" {
		t.Errorf("%q, %v", text, err)
	}
}

// startTLS serves the handler like start, with TLS for the name "server".
func startTLS(t *testing.T, limit time.Duration, handler http.HandlerFunc) (*pipes, *testenv.Authority) {
	t.Helper()
	authority := testenv.NewAuthority(t)
	options := allLimits(limit)
	options.TLS = serverTLS(t, authority.Issue(time.Now().Add(time.Hour), "server"), nil)
	return start(t, newPipes(), handler, options), authority
}

func TestAnHTTP2HandlerMayPause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const limit = 10 * time.Second
		listener, authority := startTLS(t, limit, func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.WriteString(w, r.Proto)
			w.(http.Flusher).Flush()
			time.Sleep(3 * limit)
			_, _ = io.WriteString(w, " and more")
		})
		transport := &http.Transport{
			DialContext: listener.dial, TLSClientConfig: &tls.Config{RootCAs: authority.Pool()}, ForceAttemptHTTP2: true,
		}
		response, err := (&http.Client{Transport: transport}).Get("https://server/")
		must(t, err)
		text, err := io.ReadAll(response.Body)
		if err := errors.Join(err, response.Body.Close()); err != nil || string(text) != "HTTP/2.0 and more" {
			t.Errorf("%q, %v", text, err)
		}
		transport.CloseIdleConnections()
	})
}

// A client that does not even read protocol frames is disconnected.
func TestAStalledHTTP2ConnectionIsClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const limit = 10 * time.Second
		listener, authority := startTLS(t, limit, http.NotFound)
		conn := connect(t, listener)
		// In TLS 1.2 the server sends the last handshake message, so everything it writes later is HTTP/2.
		secure := tls.Client(conn, &tls.Config{
			RootCAs: authority.Pool(), ServerName: "server", NextProtos: []string{"h2"}, MaxVersion: tls.VersionTLS12,
		})
		const settings = "\x00\x00\x00\x04\x00\x00\x00\x00\x00" // empty
		if _, err := io.WriteString(secure, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"+settings); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * limit)
		if _, err := conn.Write([]byte("x")); !errors.Is(err, io.ErrClosedPipe) {
			t.Errorf("the connection is open after twice the limit: %v", err)
		}
	})
}

func TestAStalledHandshakeIsCut(t *testing.T) {
	authority := testenv.NewAuthority(t)
	addr := serveTLS(t, authority.Issue(time.Now().Add(time.Hour), "127.0.0.1"), nil, http.NotFoundHandler(),
		httpserver.Options{Limits: httpserver.Limits{Header: 50 * time.Millisecond}})
	conn, err := net.Dial("tcp", addr)
	must(t, err)
	defer conn.Close()
	if _, err := io.ReadAll(conn); err != nil { // until the server closes the connection
		t.Error(err)
	}
}

func TestConnectionLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		listener := start(t, newPipes(), http.NotFoundHandler(), httpserver.Options{Limits: httpserver.Limits{Connections: 2}})
		first, _ := connect(t, listener), connect(t, listener)
		third := make(chan net.Conn)
		go func() {
			conn, err := listener.dial(t.Context(), "", "")
			if err != nil {
				t.Error(err)
			}
			third <- conn
		}()
		synctest.Wait()
		select {
		case <-third:
			t.Error("accepted a third connection")
		default:
		}
		must(t, first.Close())
		if err := (<-third).Close(); err != nil {
			t.Error(err)
		}
	})
}

func TestHeaderLimits(t *testing.T) {
	addr := serveTCP(t, http.HandlerFunc(protocol), httpserver.Options{})
	// The request has a Connection header in addition.
	for name, row := range map[string]struct {
		headers string
		status  int
	}{
		"most lines":     {strings.Repeat("X-Y: z\r\n", 99), 200},
		"too many lines": {strings.Repeat("X-Y: z\r\n", 100), 431},
		"too many names": {numbered(100), 431},
		"long":           {"X-Y: " + strings.Repeat("z", 30<<10) + "\r\n", 200},
		"too long":       {"X-Y: " + strings.Repeat("z", 40<<10) + "\r\n", 431},
	} {
		conn, err := net.Dial("tcp", addr)
		must(t, err)
		_, err = io.WriteString(conn, "GET / HTTP/1.1\r\nHost: h\r\n"+row.headers+"Connection: close\r\n\r\n")
		must(t, err)
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

// lines receives the log, one line at a time.
type lines chan string

func (l lines) Write(line []byte) (int, error) { l <- string(line); return len(line), nil }

// The server's own errors are logged as JSON, and failed handshakes only at level debug.
func TestServerLog(t *testing.T) {
	authority := testenv.NewAuthority(t)
	log := make(lines, 10)
	addr := serveTLS(t, authority.Issue(time.Now().Add(time.Hour), "127.0.0.1"), nil,
		http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic("broken") }),
		httpserver.Options{Log: slog.New(slog.NewJSONHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug}))})
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

func TestDefaultLimitsApplyWithoutOptions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		listener := start(t, newPipes(), http.NotFoundHandler(), httpserver.Options{})
		conn := connect(t, listener)
		began := time.Now()
		if _, err := io.ReadAll(conn); err != nil || time.Since(began) > time.Minute {
			t.Errorf("closed after %s: %v", time.Since(began), err)
		}
	})
}

// Connections that stay open after a request leave a quarter of the connections to others.
func TestIdleConnectionsLeaveRoom(t *testing.T) {
	const unread = "POST / HTTP/1.1\r\nContent-Length: 1000"
	for name, request := range map[string]string{
		"an answer": "GET / HTTP/1.1", "options": "OPTIONS * HTTP/1.1",
		"an unread body": unread, "a refusal and an unread body": unread + strings.Repeat("\r\nX-Y: z", 100),
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				const connections, header = 8, 10 * time.Second
				options := httpserver.Options{Limits: httpserver.Limits{Connections: connections, Header: header}}
				listener := start(t, newPipes(), http.NotFoundHandler(), options)
				var kept atomic.Int64
				for range connections {
					conn := connect(t, listener)
					kept.Add(1)
					go func() {
						_, _ = io.Copy(io.Discard, conn)
						kept.Add(-1)
					}()
					_, err := io.WriteString(conn, request+"\r\nHost: h\r\n\r\n")
					must(t, err)
				}
				began := time.Now()
				client, disconnect := listener.client()
				defer disconnect()
				for range connections {
					response, err := client.Get("http://server/")
					must(t, err)
					must(t, response.Body.Close())
				}
				wait := time.Since(began)
				synctest.Wait()
				if wait > header || kept.Load() > connections*3/4 {
					t.Errorf("another client waited %s, %d of %d connections were kept", wait, kept.Load(), connections)
				}
			})
		})
	}
}

// An HTTP/2 connection is not closed before its first request, but one without a request is closed after the time for
// headers. A request may take longer than that.
func TestIdleHTTP2ConnectionsLeaveRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const connections, slow = 4, time.Minute
		limits := httpserver.Limits{Connections: connections}
		authority := testenv.NewAuthority(t)
		secure := serverTLS(t, authority.Issue(time.Now().Add(time.Hour), "server"), nil)
		handler := func(w http.ResponseWriter, r *http.Request) {
			time.Sleep(slow)
			protocol(w, r)
		}
		listener := start(t, newPipes(), http.HandlerFunc(handler), httpserver.Options{Limits: limits, TLS: secure})
		config := &tls.Config{RootCAs: authority.Pool(), ServerName: "server", NextProtos: []string{"h2"}}
		for range connections {
			conn := tls.Client(connect(t, listener), config)
			go func() { _, _ = io.Copy(io.Discard, conn) }()
			const settings = "\x00\x00\x00\x04\x00\x00\x00\x00\x00" // empty
			_, err := io.WriteString(conn, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"+settings)
			must(t, err)
		}
		began := time.Now()
		for range 2 {
			transport := &http.Transport{DialContext: listener.dial, TLSClientConfig: config, ForceAttemptHTTP2: true}
			response, err := (&http.Client{Transport: transport}).Get("https://server/")
			must(t, err)
			text, err := io.ReadAll(response.Body)
			if err := errors.Join(err, response.Body.Close()); err != nil || string(text) != "HTTP/2.0" {
				t.Errorf("%q, %v", text, err)
			}
			defer transport.CloseIdleConnections()
		}
		if wait := time.Since(began) - 2*slow; wait > 20*time.Second {
			t.Errorf("another client waited %s", wait)
		}
	})
}
