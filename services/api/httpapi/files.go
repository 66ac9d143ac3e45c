package httpapi

import (
	"bufio"
	"context"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"

	"github.com/gin-gonic/gin"
	"github.com/klauspost/compress/gzip"
	"github.com/sluice-fhir/sluice/pkg/audit"
	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/gzipblocks"
)

// transferBuffer is the buffer of one download, in addition to those of the store's client.
const transferBuffer = 64 << 10

// representation is a file in one content coding.
type representation struct {
	coding coding
	size   int64
	etag   string // strong: a file never changes once it is listed
	digest string // Repr-Digest (RFC 9530), or "" when it is not known
}

// download is what a client may download: a file or an attachment.
type download struct {
	name      string // of the last segment of its URL
	mediaType string
	form      representation
	open      func(context.Context, byteRange) (io.ReadCloser, error) // a part of the representation
}

// file serves one file of a completed job (spec 4). Files are never served by presigned URL (pitfall 31).
func (s *service) file(c *gin.Context) error {
	job, file, err := s.ownFile(c)
	if err != nil {
		return err
	}
	c.Header("Vary", "Accept-Encoding")
	form, ranged, err := represent(c.Request, file)
	if err != nil {
		return fmt.Errorf("file %s of job %s: %w", file.Name, job.ID, err)
	}
	open := func(ctx context.Context, part byteRange) (io.ReadCloser, error) {
		return s.openPart(ctx, job.ID, file, form, part)
	}
	return s.deliver(c, job.ID, download{file.Name, "application/fhir+ndjson", form, open}, ranged)
}

// deliver answers a GET or HEAD of the download. ranged reports whether a Range header applies to it.
func (s *service) deliver(c *gin.Context, job export.JobID, d download, ranged bool) error {
	header, form := c.Request.Header, d.form
	// The order is that of RFC 9110 section 13.2.2. Conditions on dates are ignored: there is no Last-Modified.
	if values := header.Values("If-Match"); len(values) > 0 && !matches(values, form.etag, false) {
		return refused(http.StatusPreconditionFailed, "conflict",
			"The header If-Match does not have the ETag of the file in this encoding.")
	}
	c.Header("ETag", form.etag)
	if values := header.Values("If-None-Match"); matches(values, form.etag, true) {
		event := succeeded(audit.File, job, http.StatusNotModified)
		event.File = d.name
		if err := s.recordEvent(c, event); err != nil {
			return err
		}
		writeHeader(c, http.StatusNotModified)
		return nil
	}
	c.Header("Accept-Ranges", "bytes")
	part, status := byteRange{length: form.size}, http.StatusOK
	if ranged {
		asked, kind := parseRange(header.Values("Range"), form.size)
		switch kind {
		case unsatisfiable:
			return refused(http.StatusRequestedRangeNotSatisfiable, "invalid",
				"The header Range begins after the end of the file.", "Content-Range", fmt.Sprintf("bytes */%d", form.size))
		case partOfFile:
			part, status = asked, http.StatusPartialContent
		case wholeFile:
		}
	}
	return s.send(c, job, d, part, status)
}

// ownFile returns the file in the path if the caller may read it.
func (s *service) ownFile(c *gin.Context) (export.Job, export.File, error) {
	job, err := s.ownJob(c)
	if err != nil {
		return job, export.File{}, err
	}
	if job.State != export.Completed {
		return job, export.File{}, notAvailable() // nothing is listed yet
	}
	file, err := s.Jobs.File(c.Request.Context(), job.ID, c.Param("name"))
	if errors.Is(err, export.ErrNotFound) {
		return job, file, notAvailable()
	}
	if err != nil {
		return job, file, fmt.Errorf("looking up a file of job %s: %w", job.ID, err)
	}
	// The token may be narrower than the kick-off's (F-06). Reports about the export hold no patient's data.
	types := []string{file.Type}
	switch {
	case file.Organized(), file.Deleted && file.Of == "":
		types = job.Request.Types // it may have all of them
	case file.Deleted:
		types = []string{file.Of}
	}
	denied := slices.DeleteFunc(slices.Clone(types), principalOf(c).Scopes.MayRead)
	if !file.Error && len(denied) > 0 {
		return job, file, forbidden("The file contains a type that this token may not read: " + list(denied) + ".")
	}
	return job, file, nil
}

// represent chooses the representation of the file, and decides whether a Range header applies to it. The ETags of both
// representations derive from the digest of the stored bytes.
//
// A range is of the identity form, unless If-Range has the ETag of the gzip form (spec 4): many libraries ask for gzip
// unasked and cannot decode the middle of a stream. For a client that refuses identity there are no ranges without
// If-Range.
func represent(r *http.Request, file export.File) (form representation, ranged bool, err error) {
	chosen, identityAllowed := chooseCoding(r.Header)
	if chosen == noCoding {
		return form, false, notAcceptable("The header Accept-Encoding must allow gzip or identity.")
	}
	plain := representation{coding: identity, size: file.Bytes, etag: `"` + file.SHA256 + `"`}
	_, kind := parseRange(r.Header.Values("Range"), plain.size)
	ranged = kind != wholeFile && r.Method == http.MethodGet // Range has no meaning for HEAD (RFC 9110 section 14.2)
	if chosen == identity {
		return plain, ranged && rangeApplies(r.Header, plain.etag), nil
	}
	sum, err := hex.DecodeString(file.SHA256)
	if err != nil {
		return form, false, fmt.Errorf("recorded digest: %w", err)
	}
	packed := representation{
		coding: gzipped, size: file.Stored, etag: `"` + file.SHA256 + `-gzip"`,
		digest: "sha-256=:" + base64.StdEncoding.EncodeToString(sum) + ":",
	}
	if len(r.Header.Values("If-Range")) > 0 && rangeApplies(r.Header, packed.etag) {
		return packed, ranged, nil
	}
	if ranged && identityAllowed && rangeApplies(r.Header, plain.etag) {
		return plain, true, nil
	}
	return packed, false, nil
}

// send writes the headers and streams the part.
func (s *service) send(c *gin.Context, job export.JobID, d download, part byteRange, status int) error {
	var body io.ReadCloser
	if c.Request.Method == http.MethodGet {
		end, err := s.downloads.begin(principalOf(c).Owner, s.DownloadLimit)
		if err != nil {
			return err
		}
		defer end()
		// The part is opened, and its first byte read, before the header is sent, so that an unavailable store is a 503.
		if body, err = d.open(c.Request.Context(), part); err != nil {
			return err
		}
		defer func() { _ = body.Close() }() // read only
	}
	event := succeeded(audit.File, job, status)
	event.File = d.name
	if status == http.StatusPartialContent {
		event.Range = audit.Range{Start: part.start, Length: part.length}
	}
	if body != nil {
		event.Bytes = part.length
	}
	if err := s.recordEvent(c, event); err != nil {
		return err
	}
	c.Header("Content-Type", d.mediaType)
	c.Header("Content-Length", strconv.FormatInt(part.length, 10))
	if d.form.coding == gzipped {
		c.Header("Content-Encoding", "gzip")
	}
	if d.form.digest != "" {
		c.Header("Repr-Digest", d.form.digest)
	}
	if status == http.StatusPartialContent {
		c.Header("Content-Range", part.contentRange(d.form.size))
	}
	writeHeader(c, status)
	if body == nil {
		return nil
	}
	if sent, err := io.CopyN(toClient{c.Writer}, body, part.length); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF // the store returned fewer bytes than the file has
		}
		// refuse cuts the connection, so that the client sees an interrupted transfer and resumes.
		return s.recordCut(c, event, sent, fmt.Errorf("sending file %s of job %s: %w", d.name, job, err))
	}
	return nil
}

// openPart opens a part of the representation: of the stored bytes, or of the decompressed ones. Nothing is buffered. A
// whole representation ends before its last byte unless the object is the committed one.
func (s *service) openPart(
	ctx context.Context, job export.JobID, file export.File, form representation, part byteRange,
) (io.ReadCloser, error) {
	all := part == byteRange{length: form.size}
	switch {
	case form.coding == gzipped && all:
		stored, err := s.openObject(ctx, job, file.Key, 0, file.Stored)
		if err != nil {
			return nil, err
		}
		return reading{newWhole(stored, file.Stored, file.SHA256), stored}, nil
	case form.coding == gzipped:
		return s.openObject(ctx, job, file.Key, part.start, part.length)
	case file.Blocks != "" && !all:
		return s.openBlocks(ctx, job, file, part)
	}
	stored, err := s.openObject(ctx, job, file.Key, 0, -1)
	if err != nil {
		return nil, err
	}
	var source io.Reader = stored
	if all {
		source = newWhole(stored, file.Stored, file.SHA256)
	}
	plain, err := gzip.NewReader(source)
	if err == nil {
		err = s.skip(ctx, plain, part.start)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("unpacking file %s of job %s: %w", file.Name, job, err), stored.Close())
	}
	if all {
		return reading{newWhole(plain, file.Bytes, ""), stored}, nil
	}
	return reading{plain, stored}, nil
}

// openBlocks opens a part of the text by the file's index, so that it costs the blocks that it is in.
func (s *service) openBlocks(
	ctx context.Context, job export.JobID, file export.File, part byteRange,
) (io.ReadCloser, error) {
	place, err := gzipblocks.Find(file.Blocks, part.start, part.length, file.Stored)
	if err != nil {
		return nil, fmt.Errorf("file %s of job %s: %w", file.Name, job, err)
	}
	stored, err := s.openObject(ctx, job, file.Key, place.Offset, place.Length)
	if err != nil {
		return nil, err
	}
	plain := gzipblocks.NewReader(stored)
	if _, err := io.CopyN(io.Discard, plain, place.Skip); err != nil {
		return nil, errors.Join(fmt.Errorf("unpacking file %s of job %s: %w", file.Name, job, err), stored.Close())
	}
	return reading{plain, stored}, nil
}

// skip reads what is before a part of a file without an index, which an earlier version wrote. It costs everything before
// the part, so only a few requests at once may do it. The error of the others is a refusal.
func (s *service) skip(ctx context.Context, plain io.Reader, bytes int64) error {
	if bytes > gzipblocks.BlockSize {
		select {
		case s.scans <- struct{}{}:
			defer func() { <-s.scans }()
		default:
			return tooMuch("Too many ranges of files without an index are being read. Omit the header Range, or ask for the gzip "+
				"form with its ETag in the header If-Range.", fullWait)
		}
	}
	for bytes > 0 && ctx.Err() == nil {
		n, err := io.CopyN(io.Discard, plain, min(bytes, gzipblocks.BlockSize))
		if bytes -= n; err != nil {
			return err
		}
	}
	return ctx.Err()
}

// reading reads from one place and closes another.
type reading struct {
	io.Reader
	io.Closer
}

// openObject opens bytes of an object (to its end if length < 0) and reads the first one, so that an unavailable store or
// an object that a purge has just deleted is detected before the header is sent.
func (s *service) openObject(
	ctx context.Context, job export.JobID, key string, offset, length int64,
) (io.ReadCloser, error) {
	if of, ok := export.JobOf(key); !ok || of != job {
		// Whoever can write to Redis could name another job's object, which has another owner.
		return nil, fmt.Errorf("job %s has an object that is not below its prefix", job)
	}
	object, err := s.Objects.Open(ctx, key, offset, length)
	if err != nil {
		return nil, s.openError(ctx, job, err)
	}
	buffered := bufio.NewReaderSize(object, transferBuffer)
	if _, err := buffered.Peek(1); err != nil && !errors.Is(err, io.EOF) {
		return nil, errors.Join(s.openError(ctx, job, err), object.Close())
	}
	return reading{buffered, object}, nil
}

// openError distinguishes an object that a purge deleted after the job was read (404) from one that is missing although
// its job exists (a server error).
func (s *service) openError(ctx context.Context, id export.JobID, err error) error {
	if errors.Is(err, export.ErrNotFound) {
		job, again := s.Jobs.Job(ctx, id)
		if errors.Is(again, export.ErrNotFound) || again == nil && !job.Visible(s.Now()) {
			return notAvailable()
		}
	}
	return fmt.Errorf("opening an object of job %s: %w", id, err)
}
