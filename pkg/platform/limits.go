package platform

import (
	"net/http"
	"time"
)

const (
	maxHeaderBytes = 32 << 10 // of a request; more is answered 431
	maxHeaderLines = 100      // of a request: clients send a dozen and proxies add another
	maxStreams     = 100      // requests at once on one HTTP/2 connection
	// writePiece is how much is written under one deadline, so that a long answer in one piece is not taken for a
	// stalled one.
	writePiece = 32 << 10
)

// Limits bound what a client can hold of a server by doing little or nothing.
type Limits struct {
	Connections int           // open at once; further ones wait until one is closed
	Header      time.Duration // for a TLS handshake, and for the headers of a request
	Request     time.Duration // for a request, headers and body
	Idle        time.Duration // between two requests of a connection
	// Stall is how long the client may take none of an answer. One that takes 32 KiB in this time may go on for as long
	// as it likes.
	Stall time.Duration
}

// DefaultLimits are those of a listener that anybody may reach.
func DefaultLimits() Limits {
	return Limits{
		Connections: 10_000, Header: 10 * time.Second, Request: time.Minute, Idle: 2 * time.Minute, Stall: time.Minute,
	}
}

func (l Limits) orDefaults() Limits {
	all := DefaultLimits()
	if l.Connections > 0 {
		all.Connections = l.Connections
	}
	for _, field := range []struct {
		given time.Duration
		to    *time.Duration
	}{{l.Header, &all.Header}, {l.Request, &all.Request}, {l.Idle, &all.Idle}, {l.Stall, &all.Stall}} {
		if field.given > 0 {
			*field.to = field.given
		}
	}
	return all
}

// server returns a server that keeps the limits. The number of connections is its listener's business.
func (l Limits) server(handler http.Handler) *http.Server {
	return &http.Server{
		Handler:           &bounded{handler: handler, stall: l.Stall},
		ReadHeaderTimeout: l.Header, // bounds the handshake too, being the shortest
		ReadTimeout:       l.Request,
		IdleTimeout:       l.Idle,
		MaxHeaderBytes:    maxHeaderBytes,
		HTTP2:             &http.HTTP2Config{MaxConcurrentStreams: maxStreams, WriteByteTimeout: l.Stall},
	}
}

// bounded is a handler whose requests have few headers, and whose answers may take long but may not stall. The time for
// a write is set here and not on the connection: in HTTP/2 a client can stop to take one answer of several.
type bounded struct {
	handler http.Handler
	stall   time.Duration
}

func (b *bounded) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	lines := 0
	for _, values := range r.Header {
		lines += len(values)
	}
	if lines > maxHeaderLines {
		w.WriteHeader(http.StatusRequestHeaderFieldsTooLarge)
		return
	}
	paced := &pacedWriter{ResponseWriter: w, control: http.NewResponseController(w), stall: b.stall}
	b.handler.ServeHTTP(paced, r)
	// The server has yet to send what it buffered. It forgets the deadline when it has, and an error is that of a
	// connection that is gone.
	_ = paced.control.SetWriteDeadline(time.Now().Add(b.stall))
}

// pacedWriter gives every piece of an answer its own time.
type pacedWriter struct {
	http.ResponseWriter
	control *http.ResponseController
	stall   time.Duration
}

func (w *pacedWriter) Write(p []byte) (written int, err error) {
	for {
		piece := p[written:min(len(p), written+writePiece)]
		err = w.inTime(func() error {
			n, err := w.ResponseWriter.Write(piece)
			written += n
			return err
		})
		if err != nil || written >= len(p) {
			return written, err
		}
	}
}

// FlushError serves http.ResponseController.
func (w *pacedWriter) FlushError() error { return w.inTime(w.control.Flush) }

// Flush serves http.Flusher; a connection that is gone shows at the next write.
func (w *pacedWriter) Flush() { _ = w.FlushError() }

// Unwrap serves http.ResponseController.
func (w *pacedWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// inTime lifts the deadline again when the write is done: HTTP/2 resets a stream whose deadline passes while the
// handler waits for something else.
func (w *pacedWriter) inTime(write func() error) error {
	if err := w.control.SetWriteDeadline(time.Now().Add(w.stall)); err != nil {
		return err
	}
	if err := write(); err != nil {
		return err
	}
	return w.control.SetWriteDeadline(time.Time{})
}
