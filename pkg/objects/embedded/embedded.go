// Package embedded runs an S3 server (versitygw with its posix backend) inside the process, for a laptop, the demo
// and tests that have no MinIO. It promises what the objects package needs and stores plainly: an object is a file
// below Config.Dir/objects. What a file system may not be able to hold beside a file (checksums, content types) is
// kept in a second tree, Config.Dir/metadata: no extended attributes are used, so that any Linux file system will do.
//
// What comes with the backend, and has to be known by whoever starts it:
//   - One server a process: a second Start before the first is closed is an error.
//   - The backend changes the working directory of the process to Config.Dir/objects and needs it to stay there.
//     Resolve relative paths before Start. Close goes back.
//   - It listens on a loopback port of its own and asks for the keys like any S3 server. Folders are created with
//     mode 0700: other users of the machine neither read nor list.
//   - It is quiet but for internal errors, which it prints to standard error itself. A client that hangs up in the
//     middle of a request, such as a cancelled export, counts as one: "[INTERNAL ERROR]: unexpected EOF".
package embedded

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/versity/versitygw/auth"
	"github.com/versity/versitygw/backend/meta"
	"github.com/versity/versitygw/backend/posix"
	"github.com/versity/versitygw/embedgw"
	"github.com/versity/versitygw/s3api"
)

const (
	mode         = fs.FileMode(0o700)
	fileMode     = fs.FileMode(0o600)
	region       = "us-east-1" // where objects.Config is unless it says otherwise
	connections  = 1024
	maxParts     = 10_000
	maxCopy      = 5 << 30 // S3's own limit; the backend's zero value refuses every copy
	portAttempts = 10

	answerTimeout = 10 * time.Second
)

// started guards the working directory, which is the whole process's: a second backend must not move it away from
// under the first, not even to be refused.
var started atomic.Bool

// Config says where the data lies and which keys the server asks for.
type Config struct {
	Dir       string // created with mode 0700; what is in it is served again
	AccessKey string
	SecretKey string
}

// Server is a running S3 server.
type Server struct {
	endpoint string
	stop     context.CancelFunc
	done     chan struct{} // closed when the server has returned
	result   error         // what it returned
	close    func() error  // does its work once
}

// Start starts the server and returns when it answers. Close ends it, and not ctx, which bounds the start only.
func Start(ctx context.Context, cfg Config) (*Server, error) {
	if cfg.AccessKey == "" || cfg.SecretKey == "" {
		return nil, errors.New("embedded object store: access key or secret key is missing")
	}
	if !started.CompareAndSwap(false, true) {
		return nil, errors.New("embedded object store: it is running already")
	}
	server, err := startIn(ctx, cfg)
	if err != nil {
		started.Store(false)
		return nil, fmt.Errorf("embedded object store: %w", err)
	}
	return server, nil
}

func startIn(ctx context.Context, cfg Config) (*Server, error) {
	previous, err := os.Getwd()
	if err != nil {
		return nil, err
	}
	dir, err := filepath.Abs(cfg.Dir)
	if err != nil {
		return nil, err
	}
	for _, folder := range []string{dir, filepath.Join(dir, "objects"), filepath.Join(dir, "metadata")} {
		if err := os.MkdirAll(folder, mode); err != nil {
			return nil, err
		}
	}
	// The server does not tell which port it got, so it is given one that was free a moment ago.
	for attempt := 1; ; attempt++ {
		server, err := serve(ctx, cfg, dir)
		if err == nil {
			server.close = sync.OnceValue(func() error {
				defer started.Store(false)
				return errors.Join(server.wait(), os.Chdir(previous))
			})
			return server, nil
		}
		if attempt == portAttempts || !errors.Is(err, syscall.EADDRINUSE) {
			return nil, errors.Join(err, os.Chdir(previous))
		}
	}
}

func serve(ctx context.Context, cfg Config, dir string) (*Server, error) {
	address, err := freeAddress(ctx)
	if err != nil {
		return nil, err
	}
	sidecar, err := meta.NewSideCar(filepath.Join(dir, "metadata"))
	if err != nil {
		return nil, err
	}
	// SideCarDir stays empty: it would only have the backend announce the folder on standard output.
	options := posix.PosixOpts{CopyObjectThreshold: maxCopy}
	options.SetNewDirPerm(mode)
	options.SetNewFilePerm(fileMode)
	backend, err := posix.New(filepath.Join(dir, "objects"), sidecar, options)
	if err != nil {
		return nil, err
	}

	running, stop := context.WithCancel(context.WithoutCancel(ctx))
	listening := make(chan struct{})
	server := &Server{endpoint: "http://" + address, stop: stop, done: make(chan struct{})}
	go func() { // Close, or the failed start, waits for it
		defer close(server.done)
		server.result = embedgw.RunVersityGW(running, backend, &embedgw.Config{
			RootUserAccess: cfg.AccessKey,
			RootUserSecret: cfg.SecretKey,
			// The same that the server would choose, without its announcement on standard output.
			IAMService: auth.NewIAMServiceSingle(auth.Account{
				Access: cfg.AccessKey, Secret: cfg.SecretKey, Role: auth.RoleAdmin,
			}),
			Region:            region,
			Ports:             []string{address},
			MaxConnections:    connections,
			MaxRequests:       connections,
			MultipartMaxParts: maxParts,
			KeepAlive:         true,
			Quiet:             true,
			DisableACLs:       true,
			S3Options:         []s3api.Option{s3api.WithOnListen(func() { close(listening) })},
		})
	}()
	select {
	case <-listening:
	case <-server.done:
		return nil, server.wait()
	}
	// It is listening, but stopping it before it serves would leave the listener behind.
	if err := errors.Join(server.ask(ctx), ctx.Err()); err != nil {
		return nil, errors.Join(err, server.wait())
	}
	return server, nil
}

// ask waits for an answer, whatever it says.
func (s *Server) ask(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), answerTimeout)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, s.endpoint, nil)
	if err != nil {
		return err
	}
	reply, err := (&http.Transport{DisableKeepAlives: true}).RoundTrip(request)
	if err != nil {
		return err
	}
	return reply.Body.Close()
}

func freeAddress(ctx context.Context) (string, error) {
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	return listener.Addr().String(), listener.Close()
}

// wait ends the server and returns how it ended.
func (s *Server) wait() error {
	s.stop()
	<-s.done
	return s.result
}

// Endpoint is where the server answers: http://127.0.0.1:port.
func (s *Server) Endpoint() string { return s.endpoint }

// Close stops the server: it lets requests that are under way finish, for up to ten seconds, and goes back to the
// working directory that Start found.
func (s *Server) Close() error {
	if err := s.close(); err != nil {
		return fmt.Errorf("close embedded object store: %w", err)
	}
	return nil
}
