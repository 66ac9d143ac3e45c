package httpapi

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"slices"
	"strings"
)

// maxKickOffBody is the most bytes of a kick-off's body: 5,000 references are about 400 kB (P-42).
const maxKickOffBody = 1 << 20

// bodyValues has the known parameters with the value[x] that each may have in a body (P-40). Client libraries send codes
// and URIs as strings and the other way round.
var bodyValues = func() map[string][]string {
	text := []string{"valueString", "valueCode", "valueUri", "valueCanonical"}
	instant := []string{"valueInstant", "valueDateTime", "valueString"}
	flag := []string{"valueBoolean", "valueString", "valueCode"}
	return map[string][]string{
		"_outputFormat": text, "_type": text, "_elements": text, "_typeFilter": text,
		"includeAssociatedData": append([]string{"valueCoding"}, text...), // of a ballot of the IG
		"organizeOutputBy":      text, "_format": text, "_pretty": flag, "allowPartialManifests": flag,
		"_since": instant, "_until": instant, "patient": {"valueReference"},
	}
}()

// parseBody reads a Parameters resource (K-06, K-07, P-40). Its errors are refusals that name the parameter at fault and
// never repeat a value.
func parseBody(header http.Header, body io.Reader) ([]given, error) {
	media, _, err := mime.ParseMediaType(header.Get("Content-Type"))
	if err != nil || media != fhirJSON && media != plainJSON {
		return nil, refused(http.StatusUnsupportedMediaType, "not-supported",
			"The header Content-Type must be application/fhir+json or application/json.")
	}
	if coding := header.Get("Content-Encoding"); coding != "" && !strings.EqualFold(coding, "identity") {
		return nil, refused(http.StatusUnsupportedMediaType, "not-supported", "The header Content-Encoding is not supported.")
	}
	text, err := io.ReadAll(body)
	var tooLong *http.MaxBytesError
	switch {
	case errors.As(err, &tooLong):
		return nil, bodyTooLong(tooLong.Limit)
	case err != nil:
		return nil, invalid("The body cannot be read to its end.")
	}
	text = bytes.TrimPrefix(text, []byte("\xef\xbb\xbf"))
	if !json.Valid(text) {
		return nil, invalid("The body is not valid JSON. It must be a Parameters resource.")
	}
	return parseResource(text)
}

func bodyTooLong(limit int64) refusal {
	return refused(http.StatusRequestEntityTooLarge, "too-long",
		fmt.Sprintf("The request's body is longer than %d bytes.", limit))
}

// parseResource reads the members of the resource. An unknown one is refused: it may be a misspelt list of parameters,
// without which the export would be of everything.
func parseResource(text []byte) ([]given, error) {
	members, err := object(text)
	if errors.Is(err, errRepeated) {
		return nil, invalid("The body has a member twice.")
	}
	if err != nil || string(members["resourceType"]) != `"Parameters"` {
		return nil, invalid("The body must be a Parameters resource.")
	}
	for name := range members {
		if !slices.Contains([]string{"resourceType", "id", "meta", "language", "parameter"}, name) {
			return nil, invalid("The body has a member that is not one of a Parameters resource.")
		}
	}
	var entries []json.RawMessage
	if list, has := members["parameter"]; has {
		if err := json.Unmarshal(list, &entries); err != nil || entries == nil {
			return nil, invalid("The member parameter of the body must be an array.")
		}
	}
	return parseEntries(entries)
}

// parseEntries reads the array of parameters. Repeats of a name are its values, in their order.
func parseEntries(entries []json.RawMessage) ([]given, error) {
	var all []given
	at := map[string]int{}
	others := 0
	for _, entry := range entries {
		name, value, err := parseEntry(entry)
		if err != nil {
			return nil, err
		}
		if name != "patient" {
			others++
		}
		if others > maxParameters {
			return nil, tooMany("body")
		}
		if _, known := at[name]; !known {
			at[name] = len(all)
			all = append(all, given{name: name, inBody: true})
		}
		one := &all[at[name]]
		one.values = append(one.values, value)
	}
	return all, nil
}

// parseEntry reads one parameter. Of a parameter that is unknown, and so refused or ignored later, the value is not read.
func parseEntry(entry []byte) (name, value string, err error) {
	members, err := object(entry)
	var plain bool
	if name, plain = textOf(members["name"]); !plain || name == "" {
		return "", "", invalid("The body has a parameter without a name.")
	}
	if errors.Is(err, errRepeated) {
		return "", "", invalid("The " + naming(name) + " has a member twice.")
	}
	var values []string
	for member := range members {
		switch {
		case strings.HasPrefix(member, "value"):
			values = append(values, member)
		case member == "part", member == "resource", member == "modifierExtension":
			return "", "", invalid("The " + naming(name) + " has a member " + member + ", which is not supported.")
		case member != "name" && member != "id" && member != "extension" && !strings.HasPrefix(member, "_"):
			return "", "", invalid("The " + naming(name) + " has a member that is not one of a parameter.")
		}
	}
	allowed, known := bodyValues[name]
	if !known {
		return name, "", nil
	}
	if len(values) != 1 || !slices.Contains(allowed, values[0]) {
		return "", "", invalid("The parameter " + name + " must have one value: " + strings.Join(allowed, ", ") + ".")
	}
	if value, plain = valueOf(values[0], members[values[0]]); !plain {
		return "", "", invalid("The parameter " + name + " has a " + values[0] + " that cannot be read.")
	}
	return name, value, nil
}

// valueOf returns the value as text: of a reference its literal reference, of a coding its code.
func valueOf(member string, raw []byte) (value string, ok bool) {
	switch member {
	case "valueBoolean":
		value = string(raw)
		return value, value == "true" || value == "false"
	case "valueReference", "valueCoding":
		members, err := object(raw)
		if err != nil {
			return "", false
		}
		return textOf(members[map[string]string{"valueReference": "reference", "valueCoding": "code"}[member]])
	}
	return textOf(raw)
}

// textOf returns a JSON string.
func textOf(raw []byte) (text string, ok bool) {
	if len(raw) == 0 || raw[0] != '"' {
		return "", false
	}
	return text, json.Unmarshal(raw, &text) == nil
}

var (
	errNoObject = errors.New("no object")
	errRepeated = errors.New("a member is repeated")
)

// object returns the members of a valid JSON object, their names as they are written. With errRepeated, the result has the
// first of the repeated members. Other decoders take the last one: what a repeated member means depends on who reads it.
func object(text []byte) (map[string]json.RawMessage, error) {
	decoder := json.NewDecoder(bytes.NewReader(text))
	if begin, err := decoder.Token(); err != nil || begin != json.Delim('{') {
		return nil, errNoObject
	}
	members := map[string]json.RawMessage{}
	var repeated error
	for decoder.More() {
		key, err := decoder.Token()
		if err != nil {
			return nil, errNoObject
		}
		var value json.RawMessage
		if err := decoder.Decode(&value); err != nil {
			return nil, errNoObject
		}
		name, _ := key.(string) // the names of members are strings
		if _, again := members[name]; again {
			repeated = errRepeated
			continue
		}
		members[name] = value
	}
	return members, repeated
}
