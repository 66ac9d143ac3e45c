package testenv

import (
	"context"
	"crypto/tls"
	"io"
	"net"
	"sync"
	"testing"
)

// Terminate stands before a server that speaks plain text, shows the certificate, and hands on what comes. It returns
// the address to connect to.
func Terminate(t testing.TB, certificate Certificate, to string) string {
	t.Helper()
	listener, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{certificate.TLS(t)}})
	if err != nil {
		t.Fatal(err)
	}
	var open sync.WaitGroup
	open.Go(func() {
		for {
			near, err := listener.Accept()
			if err != nil {
				return // closed
			}
			open.Go(func() { join(near, to) })
		}
	})
	t.Cleanup(func() {
		_ = listener.Close() // nothing was promised to anybody
		open.Wait()
	})
	return listener.Addr().String()
}

// join copies both ways until one side ends, which ends the other.
func join(near net.Conn, to string) {
	defer near.Close()
	var dialer net.Dialer
	far, err := dialer.DialContext(context.Background(), "tcp", to)
	if err != nil {
		return // the client sees it
	}
	defer far.Close()
	var back sync.WaitGroup
	back.Go(func() {
		_, _ = io.Copy(near, far)
		_ = near.Close()
	})
	_, _ = io.Copy(far, near)
	_ = far.Close()
	back.Wait()
}
