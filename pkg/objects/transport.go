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
	// answerTimeout bounds the wait for an answer after a request was sent; completing a large upload is the
	// slowest answer there is.
	answerTimeout = 30 * time.Second
	idleTimeout   = 50 * time.Second
	// stallTimeout bounds every single read and write on a connection, so that a store that stops in the middle
	// of a body is an error and not a hang. It is longer than the other two: those know better what went wrong.
	stallTimeout = 60 * time.Second
)

// newTransport returns the connections of one store. There is no proxy: nothing but the configuration reads the
// environment, and the store is next door.
func newTransport(roots *x509.CertPool) *http.Transport {
	dialer := &net.Dialer{Timeout: dialTimeout, KeepAlive: 15 * time.Second}
	return &http.Transport{
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			conn, err := dialer.DialContext(ctx, network, address)
			if err != nil {
				return nil, err
			}
			return &watchedConn{Conn: conn, stall: stallTimeout}, nil
		},
		TLSClientConfig:       &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots},
		TLSHandshakeTimeout:   5 * time.Second,
		ResponseHeaderTimeout: answerTimeout,
		IdleConnTimeout:       idleTimeout,
		MaxIdleConns:          64,
		MaxIdleConnsPerHost:   64,
		WriteBufferSize:       64 << 10,
		ReadBufferSize:        64 << 10,
		DisableCompression:    true, // files are stored gzipped and go out as they are
	}
}

// watchedConn gives every read and write its own deadline.
type watchedConn struct {
	net.Conn
	stall time.Duration
}

func (c *watchedConn) Read(p []byte) (int, error) {
	if err := c.SetReadDeadline(time.Now().Add(c.stall)); err != nil {
		return 0, err
	}
	return c.Conn.Read(p)
}

// Write moves the read deadline too: the transport waits for the answer in a read that it began when the connection
// became idle, long before this request.
func (c *watchedConn) Write(p []byte) (int, error) {
	if err := c.SetDeadline(time.Now().Add(c.stall)); err != nil {
		return 0, err
	}
	return c.Conn.Write(p)
}
