package httpserver

import (
	"cmp"
	"net"
	"net/http"
	"sync/atomic"
	"time"
)

const (
	maxHeaderBytes = 32 << 10 // of a request; more is answered 431
	maxHeaderLines = 100      // of a request: clients and proxies send about a dozen each
	maxStreams     = 100      // requests at once on one HTTP/2 connection
	// chunkSize is the number of bytes that share one write deadline, so that a slow but steady download is not cut.
	chunkSize = 32 << 10
	// slowest is the rate in bytes a second that a response must keep, averaged over Limits.Stall.
	slowest = 16 << 10
	// writeBuffer is the kernel's buffer for a connection that does not read. By default it grows to several megabytes, which
	// count as memory of the process in a container.
	writeBuffer = 64 << 10
)

// Limits bound the resources that an idle or slow client can hold. Zero values select the limits of a public listener.
type Limits struct {
	Connections int // open at once; further ones wait until one is closed
	// Header is the time for a TLS handshake, for the headers of a request, and for the part of a body that is not used.
	Header  time.Duration
	Request time.Duration // for a request, headers and body
	// Idle is the time between two requests of a connection. While more than three quarters of the connections are open,
	// each response ends its connection, so that idle connections never take the last quarter.
	Idle time.Duration
	// Stall is how far a response may be behind a rate of 16 KiB/s, and so the longest time without progress. Only the time
	// in which the client does not read counts.
	Stall time.Duration
}

func (l Limits) orDefaults() Limits {
	return Limits{
		Connections: cmp.Or(l.Connections, 10_000),
		Header:      cmp.Or(l.Header, 10*time.Second),
		Request:     cmp.Or(l.Request, time.Minute),
		Idle:        cmp.Or(l.Idle, 2*time.Minute),
		Stall:       cmp.Or(l.Stall, 2*time.Minute),
	}
}

// server returns a server with the limits, except for Connections, which the listener applies.
func (l Limits) server(handler http.Handler) *http.Server {
	b := &bounded{handler: handler, limits: l}
	return &http.Server{
		Handler:           b,
		ConnState:         b.track,
		ReadHeaderTimeout: l.Header, // also bounds the TLS handshake, because it is the shortest
		ReadTimeout:       l.Request,
		IdleTimeout:       l.Idle,
		MaxHeaderBytes:    maxHeaderBytes,
		HTTP2:             &http.HTTP2Config{MaxConcurrentStreams: maxStreams, WriteByteTimeout: l.Stall},
		// net/http would answer "OPTIONS *" itself and keep the connection.
		DisableGeneralOptionsHandler: true,
	}
}

// bounded limits header lines, stalled responses and idle connections. It sets write deadlines per response and not per
// connection, because an HTTP/2 client can stall one stream of several.
type bounded struct {
	handler http.Handler
	limits  Limits
	open    atomic.Int64 // connections
}

// crowded reports whether more than three quarters of the connections are open.
func (b *bounded) crowded() bool { return 4*b.open.Load() > 3*int64(b.limits.Connections) }

// track is the server's ConnState. An HTTP/2 connection is idle from its first settings on, so it cannot be closed then:
// like a new HTTP/1 connection it gets the time for headers to send a request. net/http removes that deadline with the
// request. On an idle HTTP/1 connection net/http replaces it.
func (b *bounded) track(conn net.Conn, state http.ConnState) {
	switch state {
	case http.StateNew:
		b.open.Add(1)
	case http.StateIdle:
		if b.crowded() {
			_ = conn.SetReadDeadline(time.Now().Add(b.limits.Header)) // an error means that the connection is gone
		}
	case http.StateClosed, http.StateHijacked:
		b.open.Add(-1)
	case http.StateActive:
	}
}

func (b *bounded) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	// The header, unlike closing the idle connection, loses neither the end of the response nor a request that the client
	// is sending. For HTTP/2 net/http sends GOAWAY instead.
	if b.crowded() {
		w.Header().Set("Connection", "close")
	}
	lines := 0
	for _, values := range r.Header {
		lines += len(values)
	}
	stall := b.limits.Stall
	paced := &pacedWriter{ResponseWriter: w, control: http.NewResponseController(w), stall: stall, credit: stall}
	if lines > maxHeaderLines {
		w.WriteHeader(http.StatusRequestHeaderFieldsTooLarge)
	} else {
		b.handler.ServeHTTP(paced, r)
	}
	if r.ContentLength != 0 { // net/http reads what the handler did not read of the body, before the connection is free
		_ = paced.control.SetReadDeadline(time.Now().Add(b.limits.Header))
	}
	// The server now sends what it buffered and then resets the deadline. An error means that the connection is gone.
	_ = paced.control.SetWriteDeadline(time.Now().Add(stall))
}

// pacedWriter sets a new deadline for each chunk of a response. A client that reads slower than the slowest rate uses up
// its credit of time; one that reads faster gains it back, up to the stall time.
type pacedWriter struct {
	http.ResponseWriter
	control *http.ResponseController
	stall   time.Duration
	credit  time.Duration
}

func (w *pacedWriter) Write(p []byte) (written int, err error) {
	for {
		chunk := p[written:min(len(p), written+chunkSize)]
		err = w.withDeadline(func() (int, error) {
			n, err := w.ResponseWriter.Write(chunk)
			written += n
			return n, err
		})
		if err != nil || written >= len(p) {
			return written, err
		}
	}
}

// FlushError implements http.ResponseController's interface.
func (w *pacedWriter) FlushError() error {
	return w.withDeadline(func() (int, error) { return 0, w.control.Flush() })
}

// Flush implements http.Flusher. A lost connection is reported by the next write.
func (w *pacedWriter) Flush() { _ = w.FlushError() }

// withDeadline removes the deadline after the write: HTTP/2 resets a stream whose deadline passes while the handler waits
// for something else.
func (w *pacedWriter) withDeadline(write func() (int, error)) error {
	began := time.Now()
	if err := w.control.SetWriteDeadline(began.Add(max(w.credit, 0))); err != nil {
		return err
	}
	n, err := write()
	w.credit += time.Duration(n)*time.Second/slowest - time.Since(began)
	w.credit = min(w.credit, w.stall)
	if err != nil {
		return err
	}
	return w.control.SetWriteDeadline(time.Time{})
}

// Unwrap implements http.ResponseController's interface.
func (w *pacedWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// narrow gives accepted connections a small write buffer.
type narrow struct{ net.Listener }

func (l narrow) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if tcp, ok := conn.(*net.TCPConn); ok {
		_ = tcp.SetWriteBuffer(writeBuffer) // an optimization
	}
	return conn, err
}
