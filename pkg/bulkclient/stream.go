package bulkclient

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"strings"
	"time"
)

// errChanged: the file on the server is not the one that the part belongs to, as far as can be told. The download starts
// over.
var errChanged = errors.New("the file changed on the server, or the server cannot continue it in the middle")

var errStalled = errors.New("no data arrived for too long")

// meta holds the headers of a file, stored beside its part.
type meta struct {
	URL      string `json:"url"`
	ETag     string `json:"etag"`
	Length   int64  `json:"length"`   // of the stored representation in bytes, -1 when unknown
	Encoding string `json:"encoding"` // "gzip" or "", as the server says: see isGzip
	Digest   string `json:"digest"`   // the raw Repr-Digest header
}

// strong reports whether ranges can be conditional on the ETag (RFC 9110 13.1.5).
func (m meta) strong() bool { return m.ETag != "" && !strings.HasPrefix(m.ETag, "W/") }

// stream reads one file in the representation that the server stores: first the bytes of the part, then the rest from
// the server, which it appends to the part. It reconnects after a lost connection without an error to the reader. It is
// not safe for concurrent use.
type stream struct {
	*download
	ctx      context.Context // of the download: a Reader has no parameter for it
	name     string          // of the part
	url      string
	meta     meta
	begun    bool // meta is from the first response of this run
	part     *os.File
	size     int64 // bytes of the part
	pos      int64 // bytes returned to the reader
	body     io.ReadCloser
	cancel   context.CancelCauseFunc // cancels the request of body
	timer    *time.Timer             // cancels a stalled request
	failures int                     // consecutive, without a byte
	err      error                   // the error that ended the stream, nil at EOF
}

// openStream opens or creates the part of a file and fills meta. A part that cannot be continued is truncated.
func (d *download) openStream(ctx context.Context, file File) (_ *stream, err error) {
	s := &stream{download: d, ctx: ctx, name: file.Name + partSuffix, url: file.URL}
	s.part, err = d.folder.root.OpenFile(s.name, os.O_RDWR|os.O_CREATE, 0o640)
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
	s.size = info.Size()
	err = d.folder.load(file.Name+metaSuffix, &s.meta)
	if err != nil && !errors.Is(err, fs.ErrNotExist) || s.meta.URL != file.URL {
		s.meta = meta{}
	}
	if !s.meta.strong() || s.size == 0 || s.meta.Length >= 0 && s.size > s.meta.Length {
		s.size, s.meta = 0, meta{URL: file.URL, Length: -1}
		if err := s.part.Truncate(0); err != nil {
			return nil, fmt.Errorf("truncate the part: %w", err)
		}
		if err := s.connect(); err != nil { //nolint:contextcheck // the stream holds ctx
			return nil, err
		}
	}
	return s, nil
}

func (s *stream) Close() error {
	s.disconnect()
	if err := s.part.Close(); err != nil {
		return fmt.Errorf("close the part: %w", err)
	}
	return nil
}

func (s *stream) disconnect() {
	if s.body == nil {
		return
	}
	s.timer.Stop()
	s.cancel(nil)
	_ = s.body.Close() // the request has ended either way
	s.body = nil
}

func (s *stream) Read(p []byte) (int, error) {
	n, err := s.read(p)
	if all := s.received.Add(int64(n)); s.maxBytes > 0 && all > s.maxBytes {
		err = fmt.Errorf("%w: more than %d bytes", ErrTooLarge, s.maxBytes)
	}
	if err != nil && !errors.Is(err, io.EOF) {
		s.err = err
	}
	return n, err
}

func (s *stream) read(p []byte) (int, error) {
	if s.pos < s.size {
		n, err := s.part.ReadAt(p[:min(int64(len(p)), s.size-s.pos)], s.pos)
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
			if err := s.connect(); err != nil {
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
			s.size = s.pos
			s.failures = 0
			return n, nil // the next read returns the error again
		}
		switch {
		case err == nil:
		case errors.Is(err, io.EOF) && s.meta.Length < 0:
			s.meta.Length = s.pos
		case s.ctx.Err() != nil:
			return 0, context.Cause(s.ctx)
		default:
			s.disconnect()
			if err := s.retry(lostError{err}); err != nil {
				return 0, err
			}
		}
	}
}

func (s *stream) connect() error {
	for {
		err := s.connectOnce()
		if err == nil || errors.Is(err, errChanged) {
			return err
		}
		if err := s.retry(err); err != nil {
			return err
		}
	}
}

func (s *stream) retry(reason error) error {
	s.failures++
	return s.client.retry(s.ctx, reason, s.failures)
}

func (s *stream) connectOnce() error {
	header := http.Header{"Accept": {"application/fhir+ndjson"}, "Accept-Encoding": {"gzip"}}
	if s.size > 0 && !s.meta.strong() { // a range could be of another file
		return errChanged
	}
	if s.size > 0 {
		header.Set("Range", fmt.Sprintf("bytes=%d-", s.size))
		header.Set("If-Range", s.meta.ETag)
	}
	authorize := !s.open && (!s.ownOnly || SameOrigin(s.client.base.String(), s.url))
	ctx, cancel := context.WithCancelCause(s.ctx)
	resp, err := s.client.send(ctx, http.MethodGet, s.url, header, nil, authorize)
	if err != nil {
		cancel(nil)
		return err
	}
	switch {
	case resp.StatusCode == http.StatusOK && s.size == 0:
		err = s.begin(resp)
	case resp.StatusCode == http.StatusPartialContent && s.size > 0:
		err = s.resume(resp)
	case resp.StatusCode == http.StatusOK, resp.StatusCode == http.StatusRequestedRangeNotSatisfiable:
		err = errChanged
	default:
		err = refusal(resp)
	}
	if err != nil {
		cancel(nil)
		_ = resp.Body.Close() // deliberately unread
		return err
	}
	s.body, s.cancel = resp.Body, cancel
	s.timer = time.AfterFunc(s.client.stall, func() { cancel(errStalled) })
	return nil
}

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
	received := meta{
		URL: s.url, ETag: resp.Header.Get("ETag"), Length: resp.ContentLength, Encoding: encoding,
		Digest: resp.Header.Get("Repr-Digest"),
	}
	if s.begun && received != s.meta { // the first connection was lost before its first byte
		return errChanged
	}
	s.meta, s.begun = received, true
	return s.folder.save(s.name+".json", s.meta) // metaSuffix
}

func (s *stream) resume(resp *http.Response) error {
	var first, last, total int64
	_, err := fmt.Sscanf(resp.Header.Get("Content-Range"), "bytes %d-%d/%d", &first, &last, &total)
	tag := resp.Header.Get("ETag")
	if err != nil || first != s.size || s.meta.Length >= 0 && total != s.meta.Length || tag != "" && tag != s.meta.ETag {
		return errChanged
	}
	s.meta.Length = total
	return nil
}
