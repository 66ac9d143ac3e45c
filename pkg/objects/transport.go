package objects

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"net"
	"net/http"
	"time"
)

const (
	dialTimeout = 2 * time.Second
	// answerTimeout bounds the time from the end of a request to its response. Completing a large upload is the slowest.
	answerTimeout = 30 * time.Second
	idleTimeout   = 50 * time.Second
	// stallTimeout bounds every read and write on a connection, so that a store that stops in the middle of a body causes an
	// error. It is longer than the other timeouts, whose errors are more specific.
	stallTimeout = 60 * time.Second
)

// newTransport returns the transport of one store. It uses no proxy: only the configuration reads the environment.
func newTransport(roots *x509.CertPool) *http.Transport {
	dialer := &net.Dialer{Timeout: dialTimeout, KeepAlive: 15 * time.Second}
	return &http.Transport{
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			conn, err := dialer.DialContext(ctx, network, address)
			if err != nil {
				return nil, err
			}
			return &deadlineConn{Conn: conn, stall: stallTimeout}, nil
		},
		TLSClientConfig:       &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots},
		TLSHandshakeTimeout:   5 * time.Second,
		ResponseHeaderTimeout: answerTimeout,
		IdleConnTimeout:       idleTimeout,
		MaxIdleConns:          64,
		MaxIdleConnsPerHost:   64,
		WriteBufferSize:       16 << 10, // the API holds one for each download; readers have buffers of their own
		DisableCompression:    true,     // files are stored and served gzipped
	}
}

// deadlineConn sets a deadline for every read and write.
type deadlineConn struct {
	net.Conn
	stall time.Duration
}

func (c *deadlineConn) Read(p []byte) (int, error) {
	if err := c.SetReadDeadline(time.Now().Add(c.stall)); err != nil {
		return 0, err
	}
	return c.Conn.Read(p)
}

// Write also moves the read deadline: the transport's pending read, which receives the response, began when the connection
// became idle.
func (c *deadlineConn) Write(p []byte) (int, error) {
	if err := c.SetDeadline(time.Now().Add(c.stall)); err != nil {
		return 0, err
	}
	return c.Conn.Write(p)
}
