package firstboot

import (
	"encoding/json"
	"fmt"
	"reflect"
	"strings"
	"sync"
	"time"

	"rackstrap/firstboot/api"
)

// Document is the OpenAPI 3.0 description of the node plane: made of the table of its operations and of the types of
// package api, so that it is always true.
var Document = sync.OnceValue(func() []byte {
	text, err := json.MarshalIndent(document(), "", "  ")
	if err != nil {
		panic(err) // maps of texts always can be
	}
	return append(text, '\n')
})

type object = map[string]any

func document() object {
	schemas := object{"Error": object{"type": "object", "required": []string{"error"},
		"properties": object{"error": object{"type": "string"}}}}
	paths := object{}
	for _, op := range operations() {
		path, parameters := parametersOf(base + op.path)
		for name, text := range op.query {
			parameters = append(parameters, object{"name": name, "in": "query", "description": text, "schema": object{"type": "integer"}})
		}
		if !op.token {
			parameters = append(parameters,
				object{"name": api.HeaderAttempt, "in": "header", "required": true, "schema": object{"type": "integer", "minimum": 1}})
		}
		if op.id == "getWork" {
			parameters = append(parameters,
				object{"name": api.HeaderClock, "in": "header", "schema": object{"type": "string", "format": "date-time"}})
		}
		answers := object{}
		for status, body := range op.answers {
			answer := object{"description": describeStatus[status]}
			if body != nil {
				answer["content"] = contentOf(body, schemas)
			}
			answers[fmt.Sprint(status)] = answer
		}
		for _, status := range []int{400, 401, 403, 404, 409, 410, 413, 423, 429, 503} {
			answers[fmt.Sprint(status)] = object{"description": describeStatus[status],
				"content": object{"application/json": object{"schema": reference("Error")}}}
		}
		description := object{"operationId": op.id, "summary": op.summary, "parameters": parameters, "responses": answers,
			"security": []any{object{"bearer": []string{}}}}
		if op.body != nil {
			description["requestBody"] = object{"required": true, "content": contentOf(op.body, schemas)}
		}
		item, _ := paths[path].(object)
		if item == nil {
			item = object{}
			paths[path] = item
		}
		item[strings.ToLower(op.method)] = description
	}
	return object{
		"openapi": "3.0.3",
		"info":    object{"title": "Rackstrap node plane", "version": "1"},
		"paths":   paths,
		"components": object{
			"schemas": schemas,
			"securitySchemes": object{"bearer": object{"type": "http", "scheme": "bearer",
				"description": "exchange and events of the installer: the install token of the attempt; all others: the credential"}},
		},
	}
}

var describeStatus = map[int]string{
	200: "done", 202: "nothing to do yet: ask again after Retry-After", 204: "done, and on disk",
	400: "not understood", 401: "not its token", 403: "not the machine's address or MAC", 404: "no such machine or work",
	409: "not possible in the machine's state", 410: "a newer attempt has superseded this one", 413: "too large", 423: "held by the operator",
	429: "too many calls", 503: "a fault of the appliance: try again after Retry-After",
}

// parametersOf turns echo's path into OpenAPI's, and lists its parameters.
func parametersOf(path string) (string, []any) {
	var parameters []any
	parts := strings.Split(path, "/")
	for i, part := range parts {
		if name, ok := strings.CutPrefix(part, ":"); ok {
			parts[i] = "{" + name + "}"
			parameters = append(parameters, object{"name": name, "in": "path", "required": true, "schema": object{"type": "string"}})
		}
	}
	return strings.Join(parts, "/"), parameters
}

func contentOf(body any, schemas object) object {
	if _, text := body.(string); text {
		return object{"text/plain": object{"schema": object{"type": "string", "maxLength": api.MaxLog}}}
	}
	return object{"application/json": object{"schema": schemaOf(reflect.TypeOf(body), schemas)}}
}

func reference(name string) object { return object{"$ref": "#/components/schemas/" + name} }

// schemaOf describes a type of package api, and enters its structs among the schemas.
func schemaOf(t reflect.Type, schemas object) object {
	switch {
	case t == reflect.TypeFor[time.Time]():
		return object{"type": "string", "format": "date-time"}
	case t == reflect.TypeFor[api.Action]():
		return object{"type": "string", "enum": api.Actions()}
	}
	switch t.Kind() {
	case reflect.String:
		return object{"type": "string"}
	case reflect.Bool:
		return object{"type": "boolean"}
	case reflect.Int, reflect.Int64:
		return object{"type": "integer"}
	case reflect.Slice:
		return object{"type": "array", "items": schemaOf(t.Elem(), schemas)}
	case reflect.Struct:
		if _, known := schemas[t.Name()]; known {
			return reference(t.Name())
		}
		properties, required := object{}, []string{}
		schemas[t.Name()] = object{}
		for i := range t.NumField() {
			name, options, _ := strings.Cut(t.Field(i).Tag.Get("json"), ",")
			properties[name] = schemaOf(t.Field(i).Type, schemas)
			if options == "" {
				required = append(required, name)
			}
		}
		schema := object{"type": "object", "properties": properties}
		if len(required) > 0 {
			schema["required"] = required
		}
		schemas[t.Name()] = schema
		return reference(t.Name())
	}
	panic(fmt.Sprintf("package api has a field of type %v, which the OpenAPI document cannot describe", t))
}
