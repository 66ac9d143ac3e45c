package objects

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"hash/crc32"
	"io"
	"time"

	"github.com/minio/minio-go/v7"

	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/objects/internal/segments"
)

const (
	// cleanUpTimeout bounds the clean-up of a failed write, which runs after the write's context may have ended.
	cleanUpTimeout = 10 * time.Second
	// linger is how long a modifying request may continue after its write has ended. A cancelled request may still be
	// executed by the store, even after the clean-up: versitygw then recreates the upload. It is safer to wait for the
	// response.
	linger = time.Second
	// cleanUpPasses is how often the clean-up is repeated when a request got no response. The first pause is cleanUpPause,
	// each further one twice as long: 750 ms in total.
	cleanUpPasses = 5
	cleanUpPause  = 50 * time.Millisecond
)

// The store verifies, keeps and reports a CRC32C. S3, MinIO and versitygw all keep it for the whole object, also for
// multipart uploads.
const (
	checksumHeader    = "x-amz-checksum-crc32c"
	checksumAlgorithm = "x-amz-checksum-algorithm"
	checksumType      = "x-amz-checksum-type"
	fullObject        = "FULL_OBJECT"
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Stored describes an object that the store has confirmed.
type Stored struct {
	Key       string
	Size      int64  // bytes
	SHA256    string // lower-case hex of the bytes
	Encrypted bool   // in the store; Size and SHA256 are those of the plaintext
}

// errSilent ends what the store does not answer within cleanUpTimeout.
var errSilent = fmt.Errorf("%w: no answer within %v", export.ErrUnavailable, cleanUpTimeout)

// Writer streams one object into the store. It must be used by one goroutine. Every Writer ends with Commit or Abort;
// Abort after Commit does nothing, so it can be deferred.
//
// It does not use minio-go's streaming PutObject, which sends a part before it takes the next bytes, and which leaves
// an upload behind when a response is lost.
type Writer struct {
	store       *Store
	ctx         context.Context // ends the write; io.Writer has no context parameter
	cancel      context.CancelFunc
	lingering   context.Context // for modifying requests; outlives ctx by linger
	end         func()          // cancels both contexts
	key         string
	contentType string

	body      io.Writer        // destination of Write: parts, or encrypted; nil before the first byte
	encrypted *segments.Writer // nil for a plaintext object
	size      int64            // of the plaintext
	sha       hash.Hash        // of the plaintext

	partSize int
	filling  part
	stored   int64  // bytes sent or to be sent
	crc      uint32 // of these bytes

	began    bool // an upload may exist, even if its id is unknown
	uploadID string
	parts    []minio.CompletePart
	sending  chan sentPart // result of the part that is being sent; nil if none

	published bool // the object may be visible
	unsure    bool // a modifying request got no response and may still be executed
	committed bool
	err       error // why the write has ended
}

type sentPart struct {
	part   minio.CompletePart
	err    error
	unsure bool // as in Writer
}

// Create begins a write. Nothing is sent until a part is full or the write is committed; an object of at most one part
// is a single PUT. When ctx ends, the write fails within about two seconds and is cleaned up.
func (s *Store) Create(ctx context.Context, key, contentType string) *Writer {
	lingering, end := context.WithCancel(context.WithoutCancel(ctx))
	ctx, cancel := context.WithCancel(ctx)
	forget := context.AfterFunc(ctx, func() { time.AfterFunc(linger, end) })
	return &Writer{
		store: s, ctx: ctx, cancel: cancel, lingering: lingering, key: key, contentType: contentType, sha: sha256.New(),
		partSize: s.partSize, end: func() { forget(); cancel(); end() },
	}
}

// Write appends p. After an error the write is cleaned up, and every further call returns that error.
func (w *Writer) Write(p []byte) (int, error) {
	if err := w.usable(); err != nil {
		return 0, err
	}
	if err := w.start(); err != nil {
		return 0, w.fail("write", err)
	}
	w.sha.Write(p)
	w.size += int64(len(p))
	written, err := w.body.Write(p)
	// Plaintext that the encryption still buffers will need another part.
	if err == nil && w.encrypted != nil && w.filling.size == w.partSize && w.encrypted.Buffered() > 0 {
		err = w.send()
	}
	if err != nil {
		return written, w.fail("write", err)
	}
	return written, nil
}

// start looks up the data key before the first byte.
func (w *Writer) start() error {
	if w.body != nil {
		return nil
	}
	dataKey, err := w.store.dataKey(w.ctx, w.key)
	if err != nil {
		return err
	}
	if dataKey == nil {
		w.body = partWriter{w}
		return nil
	}
	if w.encrypted, err = segments.NewWriter(partWriter{w}, dataKey, w.key); err != nil {
		return err
	}
	w.body = w.encrypted
	// Parts are larger by the overhead of encryption, so that a single PUT stays a single PUT.
	w.partSize = int(segments.StoredSize(int64(w.partSize)))
	return nil
}

// partWriter fills the parts of a Writer.
type partWriter struct{ *Writer }

func (w partWriter) Write(p []byte) (int, error) {
	written := 0
	for len(p) > 0 {
		// Send a full part only when more bytes follow: the last part is never empty, and an object of exactly one part is
		// a single PUT.
		if w.filling.size == w.partSize {
			if err := w.send(); err != nil {
				return written, err
			}
		}
		chunk := p[:min(len(p), w.partSize-w.filling.size)]
		w.filling.fill(w.store.blocks, chunk)
		w.crc = crc32.Update(w.crc, castagnoli, chunk)
		w.stored += int64(len(chunk))
		written += len(chunk)
		p = p[len(chunk):]
	}
	return written, nil
}

// Commit makes the object visible and returns after the store has confirmed its size and checksum. After an error the
// object does not exist.
func (w *Writer) Commit() (Stored, error) {
	if err := w.usable(); err != nil {
		return Stored{}, err
	}
	if err := w.publish(); err != nil {
		return Stored{}, w.fail("commit", err)
	}
	w.committed = true
	w.filling.free(w.store.blocks)
	w.end()
	return Stored{
		Key: w.key, Size: w.size, SHA256: hex.EncodeToString(w.sha.Sum(nil)), Encrypted: w.encrypted != nil,
	}, nil
}

// Abort ends the write and removes everything it has stored. It may be called again after an error.
func (w *Writer) Abort() error {
	if w.committed {
		return nil
	}
	if w.err == nil {
		w.err = fmt.Errorf("object %s: the write was aborted", w.key)
	}
	if err := w.discard(); err != nil {
		return fmt.Errorf("abort object %s: %w", w.key, err)
	}
	return nil
}

func (w *Writer) usable() error {
	switch {
	case w.committed:
		return fmt.Errorf("object %s: already committed", w.key)
	case w.err != nil:
		return w.err
	case w.ctx.Err() != nil:
		return w.fail("write", w.ctx.Err())
	}
	return nil
}

// fail ends the write and cleans up.
func (w *Writer) fail(act string, err error) error {
	w.err = fmt.Errorf("%s object %s: %w", act, w.key, errors.Join(err, w.discard()))
	return w.err
}

// discard removes the object and its upload. The next call retries what could not be removed.
//
//nolint:contextcheck // the clean-up must outlive the context of the Writer
func (w *Writer) discard() error {
	w.cancel()
	if w.sending != nil { // bounded by linger
		sent := <-w.sending
		w.sending = nil
		w.unsure = w.unsure || sent.unsure
	}
	w.end()
	w.filling.free(w.store.blocks)
	if !w.began && !w.published {
		return nil
	}

	ctx, stop := context.WithTimeoutCause(context.WithoutCancel(w.ctx), cleanUpTimeout, errSilent)
	defer stop()
	if err := w.remove(ctx); err != nil {
		return err
	}
	for pass := range cleanUpPasses - 1 {
		if !w.unsure {
			break
		}
		select {
		case <-ctx.Done():
			return errSilent
		case <-time.After(cleanUpPause << pass):
		}
		if err := w.remove(ctx); err != nil {
			return err
		}
	}
	w.began, w.published, w.unsure = false, false, false
	return nil
}

// remove aborts the upload and deletes the object.
func (w *Writer) remove(ctx context.Context) error {
	var problems []error
	if w.began {
		if w.uploadID != "" {
			problems = append(problems, w.store.AbortUpload(ctx, w.key, w.uploadID))
		}
		problems = append(problems, w.store.abortUploads(ctx, w.key))
	}
	// Abort the upload first, so that a late completion fails.
	if w.published {
		problems = append(problems, w.store.Delete(ctx, w.key))
	}
	return errors.Join(problems...)
}

// abortUploads aborts every upload of the key until none is listed.
func (s *Store) abortUploads(ctx context.Context, key string) error {
	for range cleanUpPasses {
		aborted, err := s.abortListed(ctx, key, func(listed string) bool { return listed == key })
		if err != nil || aborted == 0 {
			return err
		}
	}
	return fmt.Errorf("abort uploads of %s: they keep appearing: %w", key, export.ErrConflict)
}

// send sends the filled part after the response to the previous one.
func (w *Writer) send() error {
	if err := w.await(); err != nil {
		return err
	}
	if w.uploadID == "" {
		if err := w.begin(); err != nil {
			return err
		}
	}
	number, full := len(w.parts)+1, w.filling
	w.filling = part{}
	w.sending = make(chan sentPart, 1)
	select {
	case w.store.overlap <- struct{}{}:
		go func(sending chan<- sentPart) { // waited for by await or discard
			defer func() { <-w.store.overlap }()
			sending <- w.sendPart(number, full)
		}(w.sending)
		return nil
	default:
		w.sending <- w.sendPart(number, full)
		return w.await()
	}
}

// await waits for the part that is being sent, if any. It also fails when the context has ended.
func (w *Writer) await() error {
	if w.sending != nil {
		sent := <-w.sending
		w.sending = nil
		if sent.err != nil {
			w.unsure = w.unsure || sent.unsure
			return sent.err
		}
		w.parts = append(w.parts, sent.part)
	}
	return w.ctx.Err()
}

// begin opens the multipart upload. Neither a cancelled context nor a plain retry after a lost response may leave an
// upload with an unknown id.
//
//nolint:contextcheck // as for discard
func (w *Writer) begin() error {
	ctx, stop := context.WithTimeoutCause(context.WithoutCancel(w.ctx), cleanUpTimeout, errSilent)
	defer stop()
	w.began = true
	for attempt := 1; ; attempt++ {
		id, err := w.store.probe.NewMultipartUpload(ctx, w.store.bucket, w.key, minio.PutObjectOptions{
			ContentType:          w.contentType,
			UserMetadata:         map[string]string{checksumAlgorithm: "CRC32C", checksumType: fullObject},
			ServerSideEncryption: w.store.sse,
		})
		if err == nil {
			w.uploadID = id
			return nil
		}
		w.unsure = w.unsure || !refused(err)
		if refused(err) || attempt == tries {
			return fmt.Errorf("begin upload: %w", failure(ctx, err))
		}
		if problem := w.store.abortUploads(ctx, w.key); problem != nil {
			return fmt.Errorf("begin upload: %w", errors.Join(failure(ctx, err), problem))
		}
	}
}

// sendPart sends one part and frees it. The store verifies its SHA-256, which is part of the signature, and its
// CRC32C, from which it computes the CRC32C of the object.
func (w *Writer) sendPart(number int, full part) sentPart {
	defer full.free(w.store.blocks)
	sha, crc := full.sums()
	sum := encodeCRC(crc)
	body := full.reader()
	defer body.detach()
	got, err := w.store.client.PutObjectPart(w.lingering, w.store.bucket, w.key, w.uploadID, number, body, int64(full.size),
		minio.PutObjectPartOptions{
			Sha256Hex:            sha,
			CustomHeader:         map[string][]string{checksumHeader: {sum}},
			DisableContentSha256: true, // sign the whole part, not chunks
		})
	if err != nil {
		return sentPart{err: fmt.Errorf("part %d: %w", number, failure(w.ctx, err)), unsure: !refused(err)}
	}
	if got.ChecksumCRC32C != sum {
		err = fmt.Errorf("part %d: the store reports CRC32C %q, want %q", number, got.ChecksumCRC32C, sum)
		return sentPart{err: err}
	}
	return sentPart{part: minio.CompletePart{PartNumber: number, ETag: got.ETag, ChecksumCRC32C: sum}}
}

// publish makes the object visible and confirms it.
func (w *Writer) publish() error {
	if err := w.start(); err != nil { // nothing was written
		return err
	}
	if w.encrypted != nil {
		if err := w.encrypted.Close(); err != nil {
			return err
		}
	}
	var err error
	if w.uploadID == "" {
		w.published = true
		err = w.putWhole()
	} else {
		if err := w.send(); err != nil {
			return err
		}
		if err := w.await(); err != nil {
			return err
		}
		w.published = true
		err = w.complete()
	}
	if err != nil && refused(err) {
		w.published = false
		return failure(w.ctx, err)
	}
	w.unsure = w.unsure || err != nil
	// After a lost response the state of the store decides.
	if problem := w.confirm(); problem != nil {
		return errors.Join(failure(w.ctx, err), problem)
	}
	return nil
}

func (w *Writer) putWhole() error {
	sha := hex.EncodeToString(w.sha.Sum(nil))
	if w.encrypted != nil {
		sha, _ = w.filling.sums()
	}
	body := w.filling.reader()
	defer body.detach()
	_, err := w.store.client.PutObject(w.lingering, w.store.bucket, w.key, body, w.stored, "", sha,
		minio.PutObjectOptions{
			ContentType:          w.contentType,
			ServerSideEncryption: w.store.sse,
			UserMetadata:         map[string]string{checksumHeader: encodeCRC(w.crc)},
			DisableContentSha256: true, // as for parts
		})
	return err
}

func (w *Writer) complete() error {
	_, err := w.store.client.CompleteMultipartUpload(w.lingering, w.store.bucket, w.key, w.uploadID, w.parts,
		minio.PutObjectOptions{
			UserMetadata: map[string]string{checksumHeader: encodeCRC(w.crc), checksumType: fullObject},
		})
	return err
}

// confirm compares size and checksum in the store with those written (pitfall 9).
func (w *Writer) confirm() error {
	info, err := w.store.client.StatObject(w.ctx, w.store.bucket, w.key, minio.StatObjectOptions{Checksum: true})
	if err != nil {
		return fmt.Errorf("confirm: %w", failure(w.ctx, err))
	}
	if info.Size != w.stored {
		return fmt.Errorf("confirm: the store has %d bytes, want %d", info.Size, w.stored)
	}
	if sum := encodeCRC(w.crc); info.ChecksumCRC32C != sum {
		return fmt.Errorf("confirm: the store reports CRC32C %q, want %q", info.ChecksumCRC32C, sum)
	}
	return w.store.confirmServerSide(info.Metadata)
}

// encodeCRC encodes a checksum for S3: base64 of the big-endian bytes.
func encodeCRC(crc uint32) string {
	return base64.StdEncoding.EncodeToString(binary.BigEndian.AppendUint32(nil, crc))
}
