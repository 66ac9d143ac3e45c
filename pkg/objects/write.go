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
	// cleanUpTimeout bounds what a failed write does to leave nothing behind, after its own context may have ended.
	cleanUpTimeout = 10 * time.Second
	// linger is how long a request that changes something may go on after its write has ended. To cut it off says
	// nothing to the store, which may carry it out after everything was cleaned up: versitygw brings an upload back
	// to life that way. Waiting for the answer is surer, and mostly shorter.
	linger = time.Second
	// looks is how often the store is looked at when a request got no answer, and lookPause the first pause between
	// two looks; each further one is twice as long, which makes 750 ms together.
	looks     = 5
	lookPause = 50 * time.Millisecond
)

// The checksum that the store verifies, keeps and reports. CRC32C is the one that S3, MinIO and versitygw all keep
// for the whole object, however many parts it came in.
const (
	checksumHeader    = "x-amz-checksum-crc32c"
	checksumAlgorithm = "x-amz-checksum-algorithm"
	checksumType      = "x-amz-checksum-type"
	fullObject        = "FULL_OBJECT"
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Stored describes an object as the store confirmed it.
type Stored struct {
	Key       string
	Size      int64  // bytes
	SHA256    string // lower-case hex of the bytes
	Encrypted bool   // the store holds them encrypted; size and digest are those of the plaintext
}

// Writer streams one object into the store. It is for one goroutine. Every Writer ends with Commit or Abort; an
// Abort after either does nothing, so that it can be deferred.
type Writer struct {
	store       *Store
	ctx         context.Context // ends the write as a whole: an io.Writer has no other way to be told
	cancel      context.CancelFunc
	lingering   context.Context // of requests that change something; outlives ctx for a moment
	end         func()          // ends both contexts
	key         string
	contentType string

	// What is written is what goes out, or an encryption lies between the two.
	body      io.Writer        // takes what is written; nil before the first byte
	encrypted *segments.Writer // the body, when the object is encrypted
	size      int64            // of what was written
	sha       hash.Hash        // of the same

	partSize int
	filling  part
	stored   int64  // bytes that go out
	crc      uint32 // of the same

	began    bool // an upload may exist, even when its id never arrived
	uploadID string
	parts    []minio.CompletePart
	sending  chan sentPart // of the part on its way; nil when there is none

	published bool // the object may be visible
	unsure    bool // a request that changes something got no answer: it may still be carried out
	committed bool
	err       error // why the write is over
}

type sentPart struct {
	part   minio.CompletePart
	err    error
	unsure bool // as in Writer
}

// Create begins a write. Nothing is sent until a part is full or the write is committed; an object of at most one
// part is a single PUT. When ctx ends the write fails, within about two seconds, and it leaves nothing.
func (s *Store) Create(ctx context.Context, key, contentType string) *Writer {
	lingering, end := context.WithCancel(context.WithoutCancel(ctx))
	ctx, cancel := context.WithCancel(ctx)
	forget := context.AfterFunc(ctx, func() { time.AfterFunc(linger, end) })
	return &Writer{
		store: s, ctx: ctx, cancel: cancel, lingering: lingering, key: key, contentType: contentType, sha: sha256.New(),
		partSize: s.partSize, end: func() { forget(); cancel(); end() },
	}
}

// Write appends p. After an error the write is over and cleaned up, and every further call returns that error.
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
	// What an encryption holds back are more bytes to come.
	if err == nil && w.encrypted != nil && w.filling.size == w.partSize && w.encrypted.Held() > 0 {
		err = w.send()
	}
	if err != nil {
		return written, w.fail("write", err)
	}
	return written, nil
}

// start decides whether the object is encrypted.
func (w *Writer) start() error {
	if w.body != nil {
		return nil
	}
	dataKey, err := w.store.dataKey(w.ctx, w.key)
	if err != nil {
		return err
	}
	if dataKey == nil {
		w.body = outgoing{w}
		return nil
	}
	if w.encrypted, err = segments.NewWriter(outgoing{w}, dataKey, w.key); err != nil {
		return err
	}
	w.body = w.encrypted
	// All parts grow by what the encryption adds to one: what is a single PUT without it is one with it.
	w.partSize = int(segments.StoredSize(int64(w.partSize)))
	return nil
}

// outgoing takes the bytes of a Writer that the store is to hold.
type outgoing struct{ *Writer }

func (w outgoing) Write(p []byte) (int, error) {
	written := 0
	for len(p) > 0 {
		// A full part is sent only when more bytes come, so that the last part is never empty and an object
		// of exactly one part is still a single PUT.
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

// Commit makes the object visible and returns after the store has confirmed its size and checksum. When it fails
// the object is not there.
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

// Abort gives the write up and leaves nothing of it. It may be called again when it has failed.
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
		return fmt.Errorf("object %s: it is committed already", w.key)
	case w.err != nil:
		return w.err
	case w.ctx.Err() != nil:
		return w.fail("write", w.ctx.Err())
	}
	return nil
}

// fail ends the write and cleans up behind it.
func (w *Writer) fail(act string, err error) error {
	w.err = fmt.Errorf("%s object %s: %w", act, w.key, errors.Join(err, w.discard()))
	return w.err
}

// discard removes what the store may have of the object. What could not be removed is tried again by the next call.
//
//nolint:contextcheck // it follows the context that the Writer was created with, on purpose beyond its end
func (w *Writer) discard() error {
	w.cancel()
	if w.sending != nil { // it ends by itself, or when it has lingered long enough
		sent := <-w.sending
		w.sending = nil
		w.unsure = w.unsure || sent.unsure
	}
	w.end()
	w.filling.free(w.store.blocks)
	if !w.began && !w.published {
		return nil
	}

	ctx, stop := context.WithTimeout(context.WithoutCancel(w.ctx), cleanUpTimeout)
	defer stop()
	if err := w.remove(ctx); err != nil {
		return err
	}
	for look := 1; w.unsure && look < looks; look++ {
		if err := pause(ctx, lookPause<<(look-1)); err != nil {
			return err
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
	// The upload goes first: then a completion that is still on its way finds none.
	if w.published {
		problems = append(problems, w.store.Delete(ctx, w.key))
	}
	return errors.Join(problems...)
}

// abortUploads aborts every upload of the key, and looks again until there is none.
func (s *Store) abortUploads(ctx context.Context, key string) error {
	for range looks {
		found := false
		err := s.uploads(ctx, key, func(u Upload) error {
			if u.Key != key {
				return nil
			}
			found = true
			return s.AbortUpload(ctx, key, u.ID)
		})
		if err != nil || !found {
			return err
		}
	}
	return fmt.Errorf("abort uploads of %s: they keep appearing: %w", key, export.ErrConflict)
}

func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}

// send sends the part that was filled, after the one before it has arrived.
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
		go func(sending chan<- sentPart) { // await or discard waits for it
			defer func() { <-w.store.overlap }()
			sending <- w.sendPart(number, full)
		}(w.sending)
		return nil
	default:
		w.sending <- w.sendPart(number, full)
		return w.await()
	}
}

// await waits for the part on its way, if there is one. It fails also when the write has ended meanwhile.
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

// begin opens the multipart upload. A cancelled context must not cut this short, and a lost answer must not be
// followed by a mere repetition: either way the store would have an upload whose id nobody knows.
//
//nolint:contextcheck // as for discard
func (w *Writer) begin() error {
	ctx, stop := context.WithTimeout(context.WithoutCancel(w.ctx), cleanUpTimeout)
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
// CRC32C, from which it makes up the object's.
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
			DisableContentSha256: true, // the whole part is signed; the library would sign it in chunks instead
		})
	if err != nil {
		return sentPart{err: fmt.Errorf("part %d: %w", number, failure(w.ctx, err)), unsure: !refused(err)}
	}
	if got.ChecksumCRC32C != sum {
		err = fmt.Errorf("part %d: the store reports CRC32C %q, sent was %q", number, got.ChecksumCRC32C, sum)
		return sentPart{err: err}
	}
	return sentPart{part: minio.CompletePart{PartNumber: number, ETag: got.ETag, ChecksumCRC32C: sum}}
}

// publish makes the object visible and has the store confirm it.
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
	// An answer that was lost is no failure yet: what the store holds decides.
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
			DisableContentSha256: true, // signed as a whole, as for parts
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

// confirm compares what the store reports with what was written (pitfall 9).
func (w *Writer) confirm() error {
	info, err := w.store.client.StatObject(w.ctx, w.store.bucket, w.key, minio.StatObjectOptions{Checksum: true})
	if err != nil {
		return fmt.Errorf("confirm: %w", failure(w.ctx, err))
	}
	if info.Size != w.stored {
		return fmt.Errorf("confirm: the store holds %d bytes, written were %d", info.Size, w.stored)
	}
	if sum := encodeCRC(w.crc); info.ChecksumCRC32C != sum {
		return fmt.Errorf("confirm: the store reports CRC32C %q, written was %q", info.ChecksumCRC32C, sum)
	}
	return w.store.confirmServerSide(info.Metadata)
}

// encodeCRC writes a checksum as S3 does: base64 of the big-endian bytes.
func encodeCRC(crc uint32) string {
	return base64.StdEncoding.EncodeToString(binary.BigEndian.AppendUint32(nil, crc))
}
