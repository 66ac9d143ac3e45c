package platform

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	"golang.org/x/net/netutil"
)

// drainTimeout is how long requests may go on after a server is told to stop.
const drainTimeout = 20 * time.Second

// Option says how a server serves, where the default does not do.
type Option func(*serving)

// serving is what options decide.
type serving struct {
	limits Limits
	tls    *tls.Config // nil: plain HTTP
	log    *slog.Logger
}

// WithTLS serves TLS, HTTP/2 included, by the configuration given: see ServerTLS. Nothing is answered in plain text.
func WithTLS(config *tls.Config) Option { return func(s *serving) { s.tls = config } }

// WithLimits takes the limits given in place of the defaults. A field that is zero keeps its default.
func WithLimits(limits Limits) Option { return func(s *serving) { s.limits = limits.orDefaults() } }

// WithLog hands what the server itself has to say (a handler that panics) to the logger, as JSON like all the rest. A
// TLS handshake that fails is the client's affair and is told at the level debug alone: anybody can cause as many as
// they like.
func WithLog(log *slog.Logger) Option { return func(s *serving) { s.log = log } }

// ServeHTTP serves the handler on the listener until the context ends, then lets running requests finish. Whatever a
// client does or leaves undone, it holds a connection for a bounded time: see Limits. How long a response may take in
// all is the handler's business, because files are long.
func ServeHTTP(ctx context.Context, listener net.Listener, handler http.Handler, options ...Option) error {
	s := serving{limits: DefaultLimits()}
	for _, option := range options {
		option(&s)
	}
	listener = netutil.LimitListener(listener, s.limits.Connections)
	server := s.limits.server(handler)
	serve := server.Serve
	if s.tls != nil {
		server.TLSConfig = s.tls
		serve = func(l net.Listener) error { return server.ServeTLS(l, "", "") }
	}
	if s.log != nil {
		server.ErrorLog = serverLog(s.log)
	}
	failed := make(chan error, 1)
	go func() { failed <- serve(listener) }()
	select {
	case err := <-failed:
		return fmt.Errorf("serve: %w", err)
	case <-ctx.Done():
	}
	drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), drainTimeout)
	defer cancel()
	err := server.Shutdown(drain)
	if errors.Is(err, context.DeadlineExceeded) {
		err = server.Close() // downloads that outlast the drain are resumed by their clients
	}
	if served := <-failed; !errors.Is(served, http.ErrServerClosed) {
		err = errors.Join(err, served)
	}
	if err != nil {
		return fmt.Errorf("stop serving: %w", err)
	}
	return nil
}
