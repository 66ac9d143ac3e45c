package objects

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/sluice-fhir/sluice/pkg/objects/internal/segments"
)

// dataKey returns the key of the object, nil if it is in plaintext.
func (s *Store) dataKey(ctx context.Context, key string) ([]byte, error) {
	if s.keys == nil {
		return nil, nil
	}
	dataKey, err := s.keys(ctx, key)
	if ended := ctx.Err(); err != nil && ended != nil {
		return nil, ended
	}
	if err != nil {
		return nil, fmt.Errorf("look up the data key: %w", err)
	}
	return dataKey, nil
}

// maxObject is larger than any object (5 TiB in S3), and can be doubled without overflow.
const maxObject = 1 << 60

// openEncrypted streams a range of the plaintext. length must not be zero.
func (s *Store) openEncrypted(
	ctx context.Context, key string, dataKey []byte, offset, length int64,
) (io.ReadCloser, error) {
	offset = min(offset, maxObject)
	if length < 0 || length > maxObject {
		length = maxObject
	}
	// The header is read together with the first segment, or else in a separate request.
	begin := int64(segments.HeaderSize)
	if offset < segments.Size {
		begin = segments.StoredEnd(offset + length)
	}
	object, body, info, err := s.openHeader(ctx, key, dataKey, begin)
	if err != nil {
		return nil, err
	}
	if offset >= segments.Size {
		if err := body.Close(); err != nil {
			return nil, err
		}
		from, to := object.StoredRange(offset, length)
		var again Info
		if body, again, err = s.get(ctx, key, from, to-from); err != nil {
			return nil, err
		}
		if again.Size != info.Size {
			err := errors.New("it was replaced while it was read")
			return nil, errors.Join(err, body.Close())
		}
	}
	return stream{object.Reader(body, offset, length), body, func(err error) error {
		return fmt.Errorf("decrypt object %s: %w", key, err)
	}}, nil
}

// openHeader requests the first length stored bytes of an encrypted object, parses the header, and returns the rest.
func (s *Store) openHeader(
	ctx context.Context, key string, dataKey []byte, length int64,
) (*segments.Object, io.ReadCloser, Info, error) {
	body, info, err := s.get(ctx, key, 0, length)
	if errors.Is(err, errPastEnd) {
		err = errors.New("it is empty; want an encrypted object")
	}
	if err != nil {
		return nil, nil, Info{}, err
	}
	header := make([]byte, segments.HeaderSize)
	n, err := io.ReadFull(body, header)
	if errors.Is(err, io.ErrUnexpectedEOF) && info.Size < segments.HeaderSize {
		err = nil // segments.Open rejects the short header
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
