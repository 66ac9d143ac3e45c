// Package embeddeds3 runs an S3 server (versitygw with its posix backend) inside the process, for laptops and the demo. An
// object is a file below Config.Dir/objects. Checksums and content types are in a second tree, Config.Dir/metadata, and not
// in extended attributes, so every Linux file system works.
//
// Properties of the backend:
//   - One server per process: a second Start before Close is an error.
//   - It changes the working directory of the process to Config.Dir/objects and needs it to stay there. Resolve relative
//     paths before Start. Close changes back.
//   - It listens on a loopback port and requires the keys. Folders are created with mode 0700.
//   - It prints internal errors to standard error. A client that disconnects during a request, such as a cancelled export,
//     counts as one: "[INTERNAL ERROR]: unexpected EOF".
package embeddeds3

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

	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/versity/versitygw/auth"
	"github.com/versity/versitygw/backend"
	"github.com/versity/versitygw/backend/meta"
	"github.com/versity/versitygw/backend/posix"
	"github.com/versity/versitygw/embedgw"
	"github.com/versity/versitygw/s3api"
	"github.com/versity/versitygw/s3response"
)

const (
	mode         = fs.FileMode(0o700)
	fileMode     = fs.FileMode(0o600)
	region       = "us-east-1" // the default of objects.Config
	connections  = 1024
	maxParts     = 10_000
	maxCopy      = 5 << 30 // S3's limit; with zero the backend refuses every copy
	portAttempts = 10

	answerTimeout = 10 * time.Second
)

// started guards the working directory of the process: a second Start must not change it, even if it fails.
var started atomic.Bool

// Config configures the server.
type Config struct {
	Dir       string // created with mode 0700; existing data is served
	AccessKey string
	SecretKey string

	// BeforeDelete, unless nil, is called before objects are deleted. They stay when it returns an error.
	BeforeDelete func(context.Context) error
}

// Server is a running S3 server.
type Server struct {
	endpoint string
	stop     context.CancelFunc
	done     chan struct{} // closed when the server has returned
	result   error         // what it returned
	close    func() error  // does its work once
}

// Start starts the server and returns when it answers. ctx bounds only the start; Close stops the server.
func Start(ctx context.Context, cfg Config) (*Server, error) {
	if cfg.AccessKey == "" || cfg.SecretKey == "" {
		return nil, errors.New("embedded object store: access key or secret key is missing")
	}
	if !started.CompareAndSwap(false, true) {
		return nil, errors.New("embedded object store: already running")
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
	// The server does not report its port, so it gets one that was free a moment ago.
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
	// SideCarDir stays empty: it only makes the backend print the folder to standard output.
	options := posix.PosixOpts{CopyObjectThreshold: maxCopy}
	options.SetNewDirPerm(mode)
	options.SetNewFilePerm(fileMode)
	var store backend.Backend
	if store, err = posix.New(filepath.Join(dir, "objects"), sidecar, options); err != nil {
		return nil, err
	}
	if cfg.BeforeDelete != nil {
		store = guarded{store, cfg.BeforeDelete}
	}

	running, stop := context.WithCancel(context.WithoutCancel(ctx))
	listening := make(chan struct{})
	server := &Server{endpoint: "http://" + address, stop: stop, done: make(chan struct{})}
	go func() { // waited for by Close or the failed start
		defer close(server.done)
		server.result = embedgw.RunVersityGW(running, store, &embedgw.Config{
			RootUserAccess: cfg.AccessKey,
			RootUserSecret: cfg.SecretKey,
			// The default of the server would also print a message to standard output.
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
	// Stopping a server that listens but does not serve yet would leak the listener.
	if err := errors.Join(server.ping(ctx), ctx.Err()); err != nil {
		return nil, errors.Join(err, server.wait())
	}
	return server, nil
}

// guarded is a backend with Config.BeforeDelete.
type guarded struct {
	backend.Backend
	before func(context.Context) error
}

// DeleteObject implements backend.Backend.
func (g guarded) DeleteObject(ctx context.Context, input *s3.DeleteObjectInput) (*s3.DeleteObjectOutput, error) {
	if err := g.before(ctx); err != nil {
		return nil, err
	}
	return g.Backend.DeleteObject(ctx, input)
}

// DeleteObjects implements backend.Backend.
func (g guarded) DeleteObjects(ctx context.Context, input *s3.DeleteObjectsInput) (s3response.DeleteResult, error) {
	if err := g.before(ctx); err != nil {
		return s3response.DeleteResult{}, err
	}
	return g.Backend.DeleteObjects(ctx, input)
}

// ping waits for any answer.
func (s *Server) ping(ctx context.Context) error {
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

// wait stops the server and returns its result.
func (s *Server) wait() error {
	s.stop()
	<-s.done
	return s.result
}

// Endpoint returns the server's URL, http://127.0.0.1:port.
func (s *Server) Endpoint() string { return s.endpoint }

// Close stops the server after running requests finish, within ten seconds, and restores the working directory.
func (s *Server) Close() error {
	if err := s.close(); err != nil {
		return fmt.Errorf("close embedded object store: %w", err)
	}
	return nil
}
