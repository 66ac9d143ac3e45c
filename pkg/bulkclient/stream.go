package bulkclient

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"
)

// errChanged: the file on the server is not the one that the part began with: start over.
var errChanged = errors.New("the file changed on the server")

var errStalled = errors.New("no byte arrived for too long")

// meta is what the server said about a file, kept beside its part.
type meta struct {
	URL      string `json:"url"`
	ETag     string `json:"etag"`
	Length   int64  `json:"length"`   // of the stored representation in bytes, -1 unknown
	Encoding string `json:"encoding"` // "gzip" or ""
	Digest   string `json:"digest"`   // the Repr-Digest header as it came
}

// stream reads one file in the representation that the server stores. It first gives what the part already holds,
// then asks for the rest and adds it to the part, and when the connection is lost it asks again from there: who reads
// it notices none of this. It is for one goroutine.
type stream struct {
	client *Client
	ctx    context.Context // of the download: a Reader has no parameter for it
	folder *folder
	name   string // of the part
	target *url.URL
	secret bool          // the download bears the token
	unit   time.Duration // what a Retry-After of the job counts
	meta   meta
	begun  bool // meta was read from a first answer of this run
	part   *os.File
	had    int64 // bytes of the part
	pos    int64 // bytes given to the reader
	body   io.ReadCloser
	cancel context.CancelCauseFunc // of the request that body belongs to
	timer  *time.Timer             // cancels a request that stalls
	err    error                   // the error that ended the stream, nil at a regular end

	failures int // in a row without a byte
}

// openStream opens the part of a file, or begins one, and learns what the server says about the file: meta is filled.
// A part that cannot be continued is emptied.
func (c *Client) openStream(
	ctx context.Context, folder *folder, file File, secret bool, unit time.Duration,
) (_ *stream, err error) {
	target, err := url.Parse(file.URL)
	if err != nil {
		return nil, errors.New("the URL is not a URL")
	}
	s := &stream{
		client: c, ctx: ctx, folder: folder, name: file.Name + partSuffix, target: target, secret: secret, unit: unit,
	}
	s.part, err = folder.root.OpenFile(s.name, os.O_RDWR|os.O_CREATE, 0o640)
	if err != nil {
		return nil, fmt.Errorf("open the part: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Close())
		}
	}()
	info, err := s.part.Stat()
	if err != nil {
		return nil, fmt.Errorf("open the part: %w", err)
	}
	s.had = info.Size()
	err = folder.load(file.Name+metaSuffix, &s.meta)
	if err != nil && !errors.Is(err, fs.ErrNotExist) || s.meta.URL != file.URL {
		s.meta = meta{}
	}
	strong := s.meta.ETag != "" && !strings.HasPrefix(s.meta.ETag, "W/") // RFC 9110 13.1.5
	if !strong || s.had == 0 || s.meta.Length >= 0 && s.had > s.meta.Length {
		s.had, s.meta = 0, meta{URL: file.URL, Length: -1}
		if err := s.part.Truncate(0); err != nil {
			return nil, fmt.Errorf("empty the part: %w", err)
		}
		if err := s.reach(ctx); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// Close gives up the connection and closes the part, whose bytes stay.
func (s *stream) Close() error {
	s.hangUp(nil)
	if err := s.part.Close(); err != nil {
		return fmt.Errorf("close the part: %w", err)
	}
	return nil
}

func (s *stream) hangUp(cause error) {
	if s.body == nil {
		return
	}
	s.timer.Stop()
	s.cancel(cause)
	// The request is over, one way or the other: how its body takes that changes nothing.
	_ = s.body.Close()
	s.body = nil
}

// Read gives the next bytes.
func (s *stream) Read(p []byte) (int, error) {
	n, err := s.read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		s.err = err
	}
	return n, err
}

func (s *stream) read(p []byte) (int, error) {
	if s.pos < s.had {
		n, err := s.part.ReadAt(p[:min(int64(len(p)), s.had-s.pos)], s.pos)
		s.pos += int64(n)
		if n > 0 {
			return n, nil
		}
		return 0, fmt.Errorf("read the part: %w", err)
	}
	for {
		if s.meta.Length >= 0 && s.pos == s.meta.Length {
			return 0, io.EOF
		}
		if s.body == nil {
			if err := s.reach(s.ctx); err != nil {
				return 0, err
			}
		}
		s.timer.Reset(s.client.stall)
		n, err := s.body.Read(p)
		s.timer.Stop()
		if n > 0 {
			if _, err := s.part.WriteAt(p[:n], s.pos); err != nil {
				return 0, fmt.Errorf("write the part: %w", err)
			}
			s.pos += int64(n)
			s.had = s.pos
			s.failures = 0
			return n, nil // an error, if there is one, comes back with the next read
		}
		switch {
		case err == nil:
		case errors.Is(err, io.EOF) && s.meta.Length < 0:
			s.meta.Length = s.pos
		case s.ctx.Err() != nil:
			return 0, context.Cause(s.ctx)
		default:
			s.hangUp(nil)
			if err := s.pause(s.ctx, lostError{err}); err != nil {
				return 0, err
			}
		}
	}
}

// reach opens a connection for the bytes from had on, with all the patience that a server in trouble gets.
func (s *stream) reach(ctx context.Context) error {
	for {
		err := s.connect(ctx)
		if err == nil || errors.Is(err, errChanged) {
			return err
		}
		if err := s.pause(ctx, err); err != nil {
			return err
		}
	}
}

// pause waits before the next attempt, or returns the reason if there is none.
func (s *stream) pause(ctx context.Context, reason error) error {
	s.failures++
	wait, again := retryIn(reason, s.failures, s.unit, false)
	if !again {
		return reason
	}
	s.client.observer.Waiting(reason, wait)
	return s.client.sleep(ctx, wait)
}

func (s *stream) connect(ctx context.Context) error {
	header := http.Header{"Accept": {"application/fhir+ndjson"}, "Accept-Encoding": {"gzip"}}
	if s.had > 0 {
		header.Set("Range", fmt.Sprintf("bytes=%d-", s.had))
		header.Set("If-Range", s.meta.ETag)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	resp, err := s.client.send(ctx, http.MethodGet, s.target, header, s.secret)
	if err != nil {
		cancel(nil)
		return err
	}
	switch {
	case resp.StatusCode == http.StatusOK && s.had == 0:
		err = s.begin(resp)
	case resp.StatusCode == http.StatusPartialContent && s.had > 0:
		err = s.resume(resp)
	case resp.StatusCode == http.StatusOK, resp.StatusCode == http.StatusRequestedRangeNotSatisfiable:
		err = errChanged
	default:
		err = refusal(resp)
	}
	if err != nil {
		cancel(nil)
		_ = resp.Body.Close() // unread on purpose
		return err
	}
	s.body, s.cancel = resp.Body, cancel
	s.timer = time.AfterFunc(s.client.stall, func() { cancel(errStalled) })
	return nil
}

// begin takes note of what the server says about the file, before its first byte is kept.
func (s *stream) begin(resp *http.Response) error {
	encoding := strings.ToLower(strings.TrimSpace(resp.Header.Get("Content-Encoding")))
	switch encoding {
	case "", "identity":
		encoding = ""
	case "gzip", "x-gzip":
		encoding = "gzip"
	default:
		return fmt.Errorf("%w: it has the content encoding %q", ErrMismatch, printable(encoding))
	}
	said := meta{
		URL:      s.meta.URL,
		ETag:     resp.Header.Get("ETag"),
		Length:   resp.ContentLength,
		Encoding: encoding,
		Digest:   resp.Header.Get("Repr-Digest"),
	}
	if s.begun && said != s.meta { // the first connection was lost before its first byte
		return errChanged
	}
	s.meta, s.begun = said, true
	return s.folder.save(s.name+".json", s.meta)
}

// resume makes sure that the bytes are the ones that follow those of the part.
func (s *stream) resume(resp *http.Response) error {
	var first, last, total int64
	_, err := fmt.Sscanf(resp.Header.Get("Content-Range"), "bytes %d-%d/%d", &first, &last, &total)
	if err != nil || first != s.had {
		return errChanged
	}
	if s.meta.Length >= 0 && total != s.meta.Length {
		return errChanged
	}
	if tag := resp.Header.Get("ETag"); tag != "" && tag != s.meta.ETag {
		return errChanged
	}
	s.meta.Length = total
	return nil
}
