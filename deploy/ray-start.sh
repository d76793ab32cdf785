#!/bin/bash
# Start a Ray node with token authentication, or refuse with one sentence: without a token, any program that reaches the node's ports runs code on it.
#
#   ray-start.sh [--env-file FILE] ARGUMENTS_OF_RAY_START...
#
# FILE has lines NAME=VALUE, is readable by the user that starts Ray, and by no other (mode 600). The token is RAY_AUTH_TOKEN, or the content of the
# file that RAY_AUTH_TOKEN_PATH names; at least 32 characters: openssl rand -hex 32
set -euo pipefail

refuse() {
    echo "ray-start.sh: Ray was not started: $*" >&2
    exit 1
}

readable() {
    [[ -f $1 && -r $1 ]] || refuse "the user $(id -u) cannot read the file $1; put it there, owned by that user, with mode 600"
    [[ -z $(find -L "$1" -perm /077) ]] || refuse "other users may read $1; run: chmod 600 $1"
}

if [[ ${1:-} = --env-file ]]; then
    [[ $# -ge 2 ]] || refuse "--env-file needs the name of a file"
    readable "$2"
    set -a
    # shellcheck source=/dev/null
    source "$2"
    set +a
    shift 2
fi

[[ ${RAY_AUTH_MODE:-} = token ]] || refuse "RAY_AUTH_MODE is '${RAY_AUTH_MODE:-}'; set RAY_AUTH_MODE=token"
# The order in which Ray itself looks for its token.
if [[ -n ${RAY_AUTH_TOKEN:-} ]]; then
    token=$RAY_AUTH_TOKEN source=RAY_AUTH_TOKEN
elif [[ -n ${RAY_AUTH_TOKEN_PATH:-} ]]; then
    readable "$RAY_AUTH_TOKEN_PATH"
    token=$(<"$RAY_AUTH_TOKEN_PATH") source=$RAY_AUTH_TOKEN_PATH
else
    refuse "there is no token; set RAY_AUTH_TOKEN, or RAY_AUTH_TOKEN_PATH to a file that holds it"
fi
[[ $token =~ ^[[:graph:]]{32,}$ ]] || refuse "the token in $source is not one word of at least 32 characters; write there what this prints: openssl rand -hex 32"
exec ray start "$@"
