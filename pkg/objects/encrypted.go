package objects

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/sluice-fhir/sluice/pkg/objects/internal/segments"
)

// dataKey returns the key that the object is encrypted with, nil if it is in plaintext.
func (s *Store) dataKey(ctx context.Context, key string) ([]byte, error) {
	if s.keys == nil {
		return nil, nil
	}
	dataKey, err := s.keys(ctx, key)
	if ended := ctx.Err(); err != nil && ended != nil {
		return nil, ended
	}
	if err != nil {
		return nil, fmt.Errorf("find its data key: %w", err)
	}
	return dataKey, nil
}

// maxObject is more than any object has, and little enough to be added to itself. S3 ends at 5 TiB.
const maxObject = 1 << 60

// openEncrypted streams a range of the plaintext. The length is not zero.
func (s *Store) openEncrypted(
	ctx context.Context, key string, dataKey []byte, offset, length int64,
) (io.ReadCloser, error) {
	offset = min(offset, maxObject)
	if length < 0 || length > maxObject {
		length = maxObject
	}
	// The header is at the beginning: with the first segment it comes in one request, else in one of its own.
	begin := int64(segments.HeaderSize)
	if offset < segments.Size {
		begin = segments.Reach(offset + length)
	}
	object, body, info, err := s.openHeader(ctx, key, dataKey, begin)
	if err != nil {
		return nil, err
	}
	if offset >= segments.Size {
		if err := body.Close(); err != nil {
			return nil, err
		}
		from, to := object.Span(offset, length)
		var again Info
		if body, again, err = s.get(ctx, key, from, to-from); err != nil {
			return nil, err
		}
		if again.Size != info.Size {
			err := errors.New("it was replaced while it was opened")
			return nil, errors.Join(err, body.Close())
		}
	}
	return &decrypted{key: key, plain: object.Reader(body, offset, length), body: body}, nil
}

// openHeader reads the header of an encrypted object, and returns the rest of its first so many stored bytes.
func (s *Store) openHeader(
	ctx context.Context, key string, dataKey []byte, length int64,
) (*segments.Object, io.ReadCloser, Info, error) {
	body, info, err := s.get(ctx, key, 0, length)
	if errors.Is(err, errBehindEnd) {
		err = errors.New("it is empty, and not encrypted as it should be")
	}
	if err != nil {
		return nil, nil, Info{}, err
	}
	header := make([]byte, segments.HeaderSize)
	n, err := io.ReadFull(body, header)
	if errors.Is(err, io.ErrUnexpectedEOF) && info.Size < segments.HeaderSize {
		err = nil // it ends there; that it is no header is found below
	}
	var object *segments.Object
	if err == nil {
		object, err = segments.Open(header[:n], dataKey, key, info.Size)
	}
	if err != nil {
		return nil, nil, Info{}, errors.Join(err, body.Close())
	}
	return object, body, info, nil
}

func (s *Store) statEncrypted(ctx context.Context, key string, dataKey []byte) (Info, error) {
	object, body, info, err := s.openHeader(ctx, key, dataKey, segments.HeaderSize)
	if err != nil {
		return Info{}, err
	}
	info.Size = object.PlainSize()
	return info, body.Close()
}

// decrypted is a range of an encrypted object.
type decrypted struct {
	key   string
	plain io.Reader
	body  io.Closer
}

func (d *decrypted) Read(p []byte) (int, error) {
	n, err := d.plain.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		err = fmt.Errorf("decrypt object %s: %w", d.key, err)
	}
	return n, err
}

func (d *decrypted) Close() error { return d.body.Close() }
