package export

import (
	"bytes"
	"encoding/json"
	"errors"
	"mime"
	"strings"
)

// Attachment describes the content of one attachment. Its encoding stands in the pack before the content.
type Attachment struct {
	ContentType string `json:"contentType"`
	Size        int64  `json:"size"`   // bytes of the content
	SHA256      string `json:"sha256"` // of the content, lower-case hex
}

// MaxAttachmentHeader is the longest encoding of an Attachment, in bytes.
const MaxAttachmentHeader = 1 << 10

// anyContent is the media type of content of an unknown or malformed type (RFC 9110 section 8.3).
const anyContent = "application/octet-stream"

// longestType is the longest content type. Encoded it has at most six times as many bytes.
const longestType = 128

// Encode returns the line that stands before the content. A content type that is not the text of a media type, or a very
// long one, becomes application/octet-stream: it is a header of the answer.
func (a Attachment) Encode() ([]byte, error) {
	media, _, err := mime.ParseMediaType(a.ContentType)
	odd := strings.ContainsFunc(a.ContentType, func(r rune) bool { return r < ' ' || r > '~' })
	if err != nil || odd || !strings.Contains(media, "/") || len(a.ContentType) > longestType {
		a.ContentType = anyContent
	}
	line, err := json.Marshal(a)
	return append(line, '\n'), err
}

var errNoAttachment = errors.New("no attachment begins here")

// DecodeAttachment reads the line at the start of data, and returns the number of its bytes.
func DecodeAttachment(data []byte) (a Attachment, length int, err error) {
	end := bytes.IndexByte(data[:min(len(data), MaxAttachmentHeader)], '\n')
	if end < 0 {
		return a, 0, errNoAttachment
	}
	fields := json.NewDecoder(bytes.NewReader(data[:end]))
	fields.DisallowUnknownFields()
	const digest = 64
	if err := fields.Decode(&a); err != nil || a.Size < 1 || len(a.SHA256) != digest {
		return Attachment{}, 0, errNoAttachment
	}
	again, err := a.Encode() // an owner may ask for any offset, also for one within content
	if err != nil || !bytes.Equal(again, data[:end+1]) {
		return Attachment{}, 0, errNoAttachment
	}
	return a, end + 1, nil
}
