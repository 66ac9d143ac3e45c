package platform

import (
	"bytes"
	"errors"

	"github.com/goccy/go-yaml"
)

// DecodeYAML reads one YAML document into the struct that into points to; a key that the struct does not know is an
// error. The library panics over some documents, such as a list that is nothing but a tag: that is a mistake in a file
// and must be reported like any other.
func DecodeYAML(content []byte, into any) (err error) {
	defer func() {
		if recover() != nil {
			err = errors.New("the YAML cannot be understood: is there a tag or an anchor where a value should be?")
		}
	}()
	return yaml.NewDecoder(bytes.NewReader(content), yaml.Strict()).Decode(into)
}
