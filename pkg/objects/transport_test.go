package objects

import (
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"testing/synctest"
	"time"
)

func TestStalledConnectionIsAnError(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		near, far := net.Pipe()
		defer near.Close()
		defer far.Close()
		conn := &deadlineConn{Conn: near, stall: 10 * time.Second}
		if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("Read from a silent peer: %v", err)
		}
		if _, err := conn.Write([]byte("x")); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("Write to a peer that does not read: %v", err)
		}
	})
}

// The transport has a pending read on every idle connection. A request that is sent late during that read must get the
// full timeout for its response.
func TestRequestRenewsPendingRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		near, far := net.Pipe()
		defer near.Close()
		defer far.Close()
		conn := &deadlineConn{Conn: near, stall: 10 * time.Second}
		answered := make(chan error, 1)
		go func() {
			_, err := io.ReadFull(conn, make([]byte, 2))
			answered <- err
		}()
		go func() {
			if _, err := io.ReadFull(far, make([]byte, 7)); err != nil {
				return // the test below fails
			}
			time.Sleep(8 * time.Second)
			_, _ = far.Write([]byte("OK")) // seen by the reader
		}()
		time.Sleep(8 * time.Second)
		if _, err := conn.Write([]byte("request")); err != nil {
			t.Fatal(err)
		}
		if err := <-answered; err != nil {
			t.Errorf("a response after 8 s of silence: %v", err)
		}
	})
}
